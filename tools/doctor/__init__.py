"""The looks that tools/doctor.py takes, a module for each part of a checkout that can be wrong.

Only the standard library is imported when these modules load, and the rest inside the look that needs it: half of
the environment may be missing, which is one of the things to find.
"""

"""Check this checkout: `python -m tools.doctor`. A module for each kind of check.

The modules import only the standard library at load time, and everything else inside the check that needs it: half
of the environment may be missing, which is one of the problems to find.
"""

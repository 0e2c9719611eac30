"""Rebuild a revision and compare it with its claim: `python -m tools.verify`."""

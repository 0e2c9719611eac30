"""The last run on one page that opens offline: `python -m tools.report`."""

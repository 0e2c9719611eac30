"""Compare two runs image by image: `python -m tools.compare`."""

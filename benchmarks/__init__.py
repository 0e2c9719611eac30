"""Measurements side by side, each one command; no stage imports them."""

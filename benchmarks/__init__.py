"""Benchmarks: each module is one command. No stage imports them."""

"""Audit the data: pictures that occur twice, and labels that are probably wrong."""

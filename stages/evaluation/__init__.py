"""Metrics, tables and the model card."""

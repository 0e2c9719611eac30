"""Serve the trained model over HTTP."""

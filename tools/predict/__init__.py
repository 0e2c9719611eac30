"""Predict pictures with the trained model."""

"""The training loop and all that takes part in it."""

"""What every stage uses. Nothing here imports TensorFlow."""

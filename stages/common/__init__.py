"""What every stage uses; nothing here loads TensorFlow."""

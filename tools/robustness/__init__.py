"""How well the trained model does on pictures unlike its data."""

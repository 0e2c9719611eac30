"""The network, its file and its predictions: for train, evaluate and whoever uses the model."""

"""The network, its file and its predictions: for train, evaluate and the tools that use the model."""

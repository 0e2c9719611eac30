"""Export the trained model for other runtimes: LiteRT, ONNX and TensorFlow Serving."""

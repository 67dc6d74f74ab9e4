"""Plain ONNX graphs and model repositories from compressed networks."""

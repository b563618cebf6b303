"""What is exported: modules, how each becomes an ONNX graph, and which graphs a model has."""

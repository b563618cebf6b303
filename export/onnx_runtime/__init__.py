"""ONNX Runtime: an engine and decoders that run on it, and graphs in eight-bit integers for CPUs."""

"""The model as ONNX graphs, TensorRT and TensorRT-RTX engines, and the engines of the runtime that run them."""

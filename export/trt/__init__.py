"""TensorRT and TensorRT-RTX behind one small adapter: building plans, and running them as segments."""

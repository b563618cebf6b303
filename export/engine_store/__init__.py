"""Engines of TensorRT and TensorRT-RTX on disk: built from an export, found again, looked after."""

"""Tensors, not sessions: the transformer, its rotary tables, noise schedule, caches and the chunk loop's
mathematics.
"""

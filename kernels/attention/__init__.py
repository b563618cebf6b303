"""Attention of a chunk's queries over the filled part of a key and value buffer.

`shotstream.kernels.attention.wrapper.cache_attention` is what one calls; importing this package imports no Triton.
"""

"""The small kernels between the matrix products of a block: one read and one write of the activations each.

`prologue` (norm, rotation and cache write of q, k, v), `norm`, `residual`, `rms`, `gelu`, `quantise` and, beside the
blocks, `noise` hold one family each: device code, launch and checks. What they are called with (`Norm`, `CacheWriter`,
`Fp8Rows`) is the runtime's (`shotstream.runtime.graph.ops`). `reference` says in float32 torch what each of them
computes and needs no Triton; `rotary` makes the tables. Nothing here knows shots, sessions or engines.
"""

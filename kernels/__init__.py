"""The kernels room: Triton kernels for the GPU, their torch references and what proves them.

Nothing here is imported by the runtime except through the plugin, and importing this package imports neither Triton nor
torch.
"""

"""What the codecs share: frames per latent; and, for Wan2.1's latents, their cells and checks of what is given.

Every check looks at shapes alone, never at values: it costs nothing on the device and waits for nothing.
"""

from __future__ import annotations

from torch import Tensor

from shotstream.runtime.errors import UserError

TIME_FACTOR = 4
"""Frames of a latent; the first of a clip holds one."""
SPACE_FACTOR = 8


def check_latents(z_BFCHW: Tensor, channels: int, name: str) -> None:
    """Raise ``UserError`` if these are not latents ``[B, F, channels, h, w]``: they come from another model."""
    if z_BFCHW.ndim != 5:
        raise UserError(f"the decoder '{name}' takes latents [B, F, C, h, w], not {list(z_BFCHW.shape)}")
    if z_BFCHW.shape[2] != channels:
        raise UserError(
            f"the decoder '{name}' does not fit this model: it reads latents of {channels} channels, "
            f"and the model makes {z_BFCHW.shape[2]}"
        )


def check_pixels(video_BTCHW: Tensor) -> None:
    """Raise ``UserError`` if these are not pixels ``[B, T, 3, H, W]`` whose sides split into latents."""
    if video_BTCHW.ndim != 5 or video_BTCHW.shape[2] != 3 or not video_BTCHW.shape[1]:
        raise UserError(f"a clip has the shape [B, T, 3, H, W], not {list(video_BTCHW.shape)}")
    if video_BTCHW.shape[-2] % SPACE_FACTOR or video_BTCHW.shape[-1] % SPACE_FACTOR:
        size = tuple(video_BTCHW.shape[-2:])
        raise UserError(f"frames of {size} do not split into latents of {SPACE_FACTOR} pixels; resize them")

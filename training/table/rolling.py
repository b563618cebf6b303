"""Two things that rival methods do inside a shot: denoising a rolling window, and sparse attention over history.

Both follow the published idea at the size of this world, not anyone's code: rolling windows after "Rolling Forcing",
block routing after "Mixture of Contexts".
"""

from __future__ import annotations

import torch
from torch import Tensor

from shotstream.runtime.model.attention import matmul_softmax
from shotstream.runtime.model.schedule import NoiseSchedule
from shotstream.runtime.model.transformer import Transformer
from shotstream.training.method.conditioning import Conditioning
from shotstream.training.method.draws import Draws
from shotstream.training.method.rollout import ShotPasses


def rolling_rollout(
    model: Transformer,
    schedule: NoiseSchedule,
    steps: Tensor,
    conditioning: Conditioning,
    frames: int,
    exit_step: int,
    draws: Draws,
    *,
    with_gradient: bool = True,
) -> Tensor:
    """Latents of one shot, [B, frames, C, H, W]: every chunk's x0 prediction at `exit_step`.

    In pass p, chunk c stands at step p - c: neighbours are denoised together, one noise level apart, and see one
    another in both directions. A chunk that has made all steps is remembered by a clean pass. Gradient is kept of the
    pass in which a chunk stands at `exit_step`.
    """
    chunk, last = model.config.chunk_frames, len(steps) - 1
    count, context = frames // chunk, conditioning.context_BFCHW
    remembered = torch.full((), model.config.context_noise, device=context.device)
    with torch.set_grad_enabled(with_gradient):
        shot = ShotPasses(model, conditioning, model.embed_captions(conditioning.captions_NLD))
    with torch.no_grad():
        shot.remember(shot.run(context, torch.zeros_like(remembered), 0, kv_only=True)[1])
    noise = draws.shot_noise((context.shape[0], frames, *context.shape[2:]))
    state = list(noise.split(chunk, dim=1))
    output: list[Tensor] = [noise] * count
    for number in range(count + last):
        moving = [c for c in range(count) if 0 <= number - c <= last]
        first = conditioning.context_frames + moving[0] * chunk
        x = torch.cat([state[c] for c in moving], dim=1)
        t_F = torch.cat([steps[number - c].expand(chunk) for c in moving])
        exits = number - exit_step in moving
        with torch.set_grad_enabled(with_gradient and exits):
            flow, _ = shot.run(x, t_F, first)
            x0s = schedule.to_x0(x, flow, t_F.expand(x.shape[:2])).split(chunk, dim=1)
        for c, x0 in zip(moving, x0s, strict=True):
            step = number - c
            if step == exit_step:
                output[c] = x0
            state[c] = x0.detach()
            if step < last:
                state[c] = schedule.add_noise(state[c], draws.renoise(tuple(x0.shape), c, step), steps[step + 1])
        if number - last in moving and number - last < count - 1:
            done = state[number - last]
            with torch.no_grad():
                clean = schedule.add_noise(done, draws.clean_noise(tuple(done.shape), number - last), remembered)
                shot.remember(shot.run(clean, remembered, first, kv_only=True)[1])
    return torch.cat(output, dim=1)


class RoutedAttention:
    """Self-attention in which a query frame sees, of the remembered frames, only the `top` nearest to it, by head.

    Nearness is the product of mean query and mean key of two frames. What lies behind the first `history` frames of
    keys (the shot itself) is seen in full; so is a frame by itself. `history` is set before each shot.
    """

    def __init__(self, tokens: int, top: int) -> None:
        """tokens: of one frame. top: remembered frames that a query frame sees."""
        self.tokens, self.top, self.history = tokens, top, 0

    def __call__(self, q_BLHK: Tensor, k_BLHK: Tensor, v_BLHK: Tensor, *masks: Tensor | None) -> Tensor:
        """Same as any attention; only self-attention hands a mask (or None), cross-attention has nothing to route."""
        mask = masks[0] if masks else None
        if not masks or self.history <= self.top:
            return matmul_softmax(q_BLHK, k_BLHK, v_BLHK, mask)
        with torch.no_grad():
            queries = q_BLHK.unflatten(1, (-1, self.tokens)).mean(2)
            keys = k_BLHK.unflatten(1, (-1, self.tokens)).mean(2)
            near = torch.einsum("bfhk,bghk->bhfg", queries, keys)
            asking, known = near.shape[-2:]
            near[..., self.history :] = float("inf")
            if asking == known:  # a pass that is its own history, as the context pass
                near.diagonal(dim1=-2, dim2=-1).fill_(float("inf"))
            floor = near[..., : self.history].topk(self.top, dim=-1).values[..., -1:]
            seen = (near >= floor).repeat_interleave(self.tokens, -2).repeat_interleave(self.tokens, -1)
        return matmul_softmax(q_BLHK, k_BLHK, v_BLHK, seen if mask is None else seen & mask)

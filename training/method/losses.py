"""The losses of the training stages as pure functions of tensors.

What is here: the flow-matching loss of the bidirectional teacher, the masked x0 regression of the causal
initialisation, the distribution-matching gradient of the generator and the flow loss of its critic. What is not:
networks, random draws, roll-outs (see `objectives.py`, `draws.py`, `rollout.py`).

Shape letters: B samples, F latent frames, C channels, H rows, W columns. All losses are scalars in float32 or
float64, whatever the dtype of their inputs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


def flow_matching_loss(flow_BFCHW: Tensor, x0_BFCHW: Tensor, noise_BFCHW: Tensor, weight_B: Tensor) -> Tensor:
    """Weighted squared error of the teacher's flow against `noise - x0`, averaged over frames, then samples.

    `weight_B` is the schedule's weight of each sample's timestep (`NoiseSchedule.loss_weights`).
    Source: `model/flow_matching.py`.
    """
    error_BFCHW = flow_BFCHW.float() - (noise_BFCHW - x0_BFCHW).float()
    return (error_BFCHW.square().mean(dim=(1, 2, 3, 4)) * weight_B).mean()


def motion_loss(flow_BFCHW: Tensor, x0_BFCHW: Tensor, noise_BFCHW: Tensor, sigma_B: Tensor) -> Tensor:
    """Squared error of the x0 prediction in how its frames differ from their mean, averaged over frames and samples.

    Added to the flow loss it moves no optimum (the mean of the posterior minimises every squared error), but it counts
    motion, a small part of the whole error, and high noise, where a caption alone can tell it.
    """
    error_BFCHW = sigma_B[:, None, None, None, None] * (flow_BFCHW.float() - (noise_BFCHW - x0_BFCHW).float())
    return (error_BFCHW - error_BFCHW.mean(1, keepdim=True)).square().mean()


@dataclass(frozen=True)
class OdeLoss:
    """`loss` counts only frames above t = 0; `unmasked` is the same mean over every frame, for curves."""

    loss: Tensor
    unmasked: Tensor


def ode_regression_loss(
    x0_BFCHW: Tensor, target_BFCHW: Tensor, t_BF: Tensor, *, reference_nan: bool = False
) -> OdeLoss:
    """Squared error of x0 predictions over the frames that were noisy.

    A block that drew the trajectory's end (t = 0) is context for later blocks and gives no loss. When every block
    of the batch drew it, there is nothing to average: the loss is then 0, still attached to the graph.
    `reference_nan=True` gives the NaN that the reference gives there. Source: `model/ode_regression.py`.
    """
    frame_error_BF = (x0_BFCHW.float() - target_BFCHW.float()).square().mean(dim=(2, 3, 4))
    noisy_BF = (t_BF != 0).to(frame_error_BF.dtype)
    count = noisy_BF.sum() if reference_nan else noisy_BF.sum().clamp(min=1)
    return OdeLoss((frame_error_BF * noisy_BF).sum() / count, frame_error_BF.detach().mean())


def guided(x_cond: Tensor, x_negative: Tensor, scale: float) -> Tensor:
    """`x_cond + scale * (x_cond - x_negative)`: guidance as the distillation code writes it.

    The usual classifier-free weight is `scale + 1`: the shipped 3.0 is a weight of 4.
    """
    return x_cond + scale * (x_cond - x_negative)


def dmd_gradient(x_BFCHW: Tensor, fake_x0_BFCHW: Tensor, real_x0_BFCHW: Tensor) -> Tensor:
    """The direction along which the generator's output is moved: `(fake - real) / mean|x - real|`.

    The normaliser is one number per sample (mean over all other axes), never shared in the batch; a sample whose
    quotient is not a number contributes 0. Computed in at least float32, without gradient.
    Source: `model/dmd_frameconcat.py`.
    """
    dtype = torch.promote_types(x_BFCHW.dtype, torch.float32)
    x, fake, real = (z.detach().to(dtype) for z in (x_BFCHW, fake_x0_BFCHW, real_x0_BFCHW))
    scale_B1111 = (x - real).abs().mean(dim=(1, 2, 3, 4), keepdim=True)
    return torch.nan_to_num((fake - real) / scale_B1111)


def dmd_generator_loss(x_BFCHW: Tensor, gradient_BFCHW: Tensor) -> Tensor:
    """A loss whose gradient with respect to `x` is `gradient / numel`, in float64."""
    x = x_BFCHW.double()
    target = (x - gradient_BFCHW.double()).detach()
    return 0.5 * (x - target).square().mean()


def dmd_critic_loss(flow_BFCHW: Tensor, x0_BFCHW: Tensor, noise_BFCHW: Tensor) -> Tensor:
    """Unweighted squared error of the critic's flow against `noise - x0` of the generator's sample."""
    return (flow_BFCHW.float() - (noise_BFCHW - x0_BFCHW).float()).square().mean()

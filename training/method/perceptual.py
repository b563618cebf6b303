"""A perceptual loss for latents: two clips are compared as a small network sees them that knows what is to be seen.

A squared error of latents hardly tells a top hat from a party hat, and the mean of both is its answer while it is not
sure; to a network that was trained to say which of them is there, they differ as much as anything does.

Sources: Johnson et al., "Perceptual losses for real-time style transfer and super-resolution", 2016; of latents instead
of pixels, for regression from noise: Kang et al., "Distilling diffusion models into conditional GANs", 2024.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn import functional as F

from shotstream.runtime.errors import UserError
from shotstream.runtime.model.state_dicts import write_safetensors
from shotstream.training.world.parts import PARTS
from shotstream.training.world.story import (
    ACCESSORIES,
    ACTIONS,
    BELLY_COLORS,
    COLORS,
    HOUSE_COLORS,
    PLACES,
    ROOF_COLORS,
    SIZES,
    TIMES,
)

HERO_LOOKS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "accessory": (ACCESSORIES[1:], ("accessory",)),
    "color": (COLORS, ("body", "head")),
    "belly": (BELLY_COLORS, ("body",)),
    "action": (ACTIONS, ("body", "head")),
}
"""What every cell is asked about its hero: the answers, and the parts of a figure in whose cells it is asked."""
SCENE_LOOKS: dict[str, tuple[str, ...]] = {
    "size": SIZES, "place": PLACES, "time": TIMES, "house_color": HOUSE_COLORS, "roof": ROOF_COLORS
}  # fmt: skip
"""What a whole frame is asked."""


@dataclass(frozen=True)
class Looks:
    """Logits: ``parts [N, P, H, W]``; ``heroes`` by look ``[N, values, H, W]``; ``scene`` by look ``[N, values]``."""

    parts: Tensor
    heroes: dict[str, Tensor]
    scene: dict[str, Tensor]


class PerceptualNet(nn.Module):
    """Latents to what they show. Two layers see single cells and their neighbours, two see twice as much at half the
    resolution; between these one looks a latent back and ahead, for motion.
    """

    def __init__(self, channels: int, width: int = 96) -> None:
        super().__init__()
        wide = width * 5 // 3
        self.first = nn.Conv2d(channels, width, 3, padding=1)
        self.near = nn.Conv2d(width, width, 3, padding=1)
        self.halve = nn.Conv2d(width, wide, 3, stride=2, padding=1)
        self.time = nn.Conv2d(3 * wide, wide, 1)  # Conv3d's gradient is broken in bfloat16 on a CPU (torch 2.13)
        self.far = nn.Conv2d(wide, wide, 3, padding=1)
        self.back = nn.Conv2d(wide, width, 1)
        self.parts = nn.Conv2d(width, len(PARTS), 1)
        self.heroes = nn.ModuleDict({look: nn.Conv2d(width, len(v), 1) for look, (v, _) in HERO_LOOKS.items()})
        self.scene = nn.ModuleDict({look: nn.Linear(2 * wide, len(v)) for look, v in SCENE_LOOKS.items()})
        self.strangers: Tensor
        self.register_buffer("strangers", torch.ones(4))

    def features(self, latents_BFCHW: Tensor) -> list[Tensor]:
        """What the four layers see, ``[B, F, D, h, w]`` each; h and w are those of the latents or their halves."""
        batch, frames = latents_BFCHW.shape[:2]
        first = F.silu(self.first(latents_BFCHW.flatten(0, 1)))
        near = F.silu(self.near(first)) + first
        half = F.silu(self.halve(near))
        still = half.unflatten(0, (batch, frames))
        nothing = torch.zeros_like(still[:, :1])
        before, after = torch.cat([nothing, still[:, :-1]], 1), torch.cat([still[:, 1:], nothing], 1)
        moving = half + F.silu(self.time(torch.cat([before, still, after], 2).flatten(0, 1)))
        far = F.silu(self.far(moving)) + moving
        return [layer.unflatten(0, (batch, frames)) for layer in (first, near, moving, far)]

    def forward(self, latents_BFCHW: Tensor, dropout: float = 0.0) -> Looks:
        """What every frame shows, N = B F of them; height and width of the latents are even."""
        _, near, _, far = (layer.flatten(0, 1) for layer in self.features(latents_BFCHW))
        both = F.dropout(F.silu(near + F.interpolate(self.back(far), scale_factor=2)), dropout)
        whole = F.dropout(torch.cat([far.mean((2, 3)), far.amax((2, 3))], 1), 2 * dropout)
        return Looks(
            self.parts(F.dropout(near, dropout)),
            {look: head(both) for look, head in self.heroes.items()},
            {look: head(whole) for look, head in self.scene.items()},
        )

    @torch.no_grad()
    def calibrate(self, latents_BFCHW: Tensor) -> None:
        """Note by how much the features of clips that have nothing to do with each other differ, layer by layer."""
        layers = self.features(latents_BFCHW)
        spread = [(layer - layer.mean((0, 1, 3, 4), keepdim=True)).square().mean() for layer in layers]
        self.strangers.copy_(2 * torch.stack(spread).clamp(min=1e-6))

    def save(self, path: Path) -> None:
        """Write the weights; atomic."""
        path.parent.mkdir(parents=True, exist_ok=True)
        write_safetensors(path, self.state_dict(), {"format": "pt"})

    @classmethod
    def load(cls, path: Path) -> PerceptualNet:
        """Frozen, as stage ``perceptual`` wrote it. UserError if it is not there or not such a file."""
        if not path.exists():
            raise UserError(f"{path} does not exist; run 'shotstream train perceptual' first")
        try:
            with safe_open(path, "pt") as file:
                state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            width, channels = state["first.weight"].shape[:2]
            net = cls(channels, width)
            net.load_state_dict(state)
        except (SafetensorError, KeyError, RuntimeError) as error:
            raise UserError(
                f"{path} is not what stage perceptual writes; remove it and run 'shotstream train perceptual'"
            ) from error
        return net.eval().requires_grad_(False)


def perceptual_error(net: PerceptualNet, found_BFCHW: Tensor, true_BFCHW: Tensor, weight_BF1HW: Tensor) -> Tensor:
    """Mean over layers of the squared difference of features, as a share of what strangers differ by.

    Two clips of other stories are about 1 apart, whatever the layer, once the net is calibrated. weight_BF1HW: how much
    a cell counts.
    """
    with torch.no_grad():
        wanted = [layer.float() for layer in net.features(true_BFCHW)]
    errors = []
    for seen, want, strangers in zip(net.features(found_BFCHW), wanted, net.strangers, strict=True):
        weight = weight_BF1HW
        if want.shape[-1] != weight.shape[-1]:
            weight = F.avg_pool2d(weight.flatten(0, 1), 2).unflatten(0, weight.shape[:2])
        errors.append(((seen.float() - want).square() * weight).mean() / strangers)
    return torch.stack(errors).mean()

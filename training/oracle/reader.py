"""The learned reader: one small convolutional network that says what is in a frame of the story world.

It sees single frames, brought to 80x128. It does not know captions, and it is never used as a training signal for
the models it judges. Weights are made by train_reader.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from shotstream.runtime.errors import UserError
from shotstream.training.world.story import SPECIES

from .slots import FRAME_SLOTS, HERO_SLOTS

HEIGHT, WIDTH = 80, 128
WEIGHTS = Path(__file__).parent / "weights" / "reader.safetensors"


class ReaderNet(nn.Module):
    """Frames [N, 3, 80, 128] in -1..1 to logits per slot.

    Hero slots are read through one attention map per species, so that two heroes do not mix; frame slots from the
    whole picture.
    """

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        w = width
        self.fine = nn.Sequential(
            _conv(3, w, 5, 2), _conv(w, 2 * w, 3, 2), _conv(2 * w, 3 * w, 3, 2), _conv(3 * w, 3 * w)
        )
        self.coarse = nn.Sequential(_conv(3 * w, 4 * w, 3, 2), _conv(4 * w, 4 * w))
        self.back = nn.Conv2d(4 * w, 3 * w, 1)
        self.look = nn.Conv2d(3 * w, len(SPECIES), 1)
        self.hero = nn.Linear(3 * w + 4 * w + len(SPECIES), 160)
        self.present = nn.Linear(160, 1)
        self.hero_heads = nn.ModuleDict({slot: nn.Linear(160, len(v)) for slot, v in HERO_SLOTS.items()})
        self.squeeze = nn.Conv2d(4 * w, 24, 1)
        self.scene = nn.Linear(24 * 5 * 8, 160)
        self.frame_heads = nn.ModuleDict({slot: nn.Linear(160, len(v)) for slot, v in FRAME_SLOTS.items()})

    def forward(self, frames_NCHW: Tensor) -> dict[str, Tensor]:
        """Logits: "present" [N, 4]; "where" [N, 4, 160]; hero slots [N, 4, values]; frame slots [N, values]."""
        fine = self.fine(frames_NCHW)
        coarse = self.coarse(fine)
        mixed = F.relu(fine + F.interpolate(self.back(coarse), scale_factor=2.0, mode="nearest"))
        look_NSP = self.look(mixed).flatten(2)
        heroes_NSC = look_NSP.softmax(-1) @ mixed.flatten(2).transpose(1, 2)
        n, count = len(frames_NCHW), len(SPECIES)
        around = coarse.mean((2, 3))[:, None].expand(n, count, -1)
        which = torch.eye(count, device=around.device, dtype=around.dtype).expand(n, count, count)
        hero = F.relu(self.hero(torch.cat((heroes_NSC, around, which), -1)))
        scene = F.relu(self.scene(self.squeeze(coarse).flatten(1)))
        logits = {"present": self.present(hero)[..., 0], "where": look_NSP}
        logits |= {slot: head(hero) for slot, head in self.hero_heads.items()}
        logits |= {slot: head(scene) for slot, head in self.frame_heads.items()}
        return logits


def _conv(inner: int, outer: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(inner, outer, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outer), nn.ReLU(inplace=True))


@dataclass(frozen=True)
class Reading:
    """What the reader says about one shot: probabilities averaged over its frames.

    `present` [4] by species; `heroes[slot]` [4, values]; `scene[slot]` [values].
    """

    present: NDArray[np.float32]
    heroes: Mapping[str, NDArray[np.float32]]
    scene: Mapping[str, NDArray[np.float32]]

    def species(self) -> frozenset[str]:
        """The species seen; at least one, at most two."""
        order = np.argsort(-self.present)
        count = 2 if self.present[order[1]] > 0.5 else 1
        return frozenset(SPECIES[i] for i in order[:count])

    def of_hero(self, species: str, slot: str) -> str:
        """The likeliest value of a hero slot, given that this species is in the picture."""
        return HERO_SLOTS[slot][int(self.heroes[slot][SPECIES.index(species)].argmax())]

    def of_scene(self, slot: str) -> str:
        """The likeliest value of a frame slot."""
        return FRAME_SLOTS[slot][int(self.scene[slot].argmax())]


class Reader:
    """The trained network, ready to read shots. Use `load_reader`."""

    def __init__(self, net: ReaderNet, note: Mapping[str, str] | None = None) -> None:
        """`note` says how the weights were made."""
        self.net = net.eval()
        self.note = dict(note or {})

    @torch.inference_mode()
    def read_frames(self, frames_FHWC: NDArray[np.uint8]) -> dict[str, Tensor]:
        """Probabilities per frame for uint8 frames [F, H, W, 3] of any size with the aspect 10:16."""
        parts: list[dict[str, Tensor]] = []
        for start in range(0, len(frames_FHWC), 32):
            parts.append(self.net(to_reader(frames_FHWC[start : start + 32])))
        joined = {slot: torch.cat([p[slot] for p in parts]).float() for slot in parts[0]}
        return {k: v.sigmoid() if k == "present" else v.softmax(-1) for k, v in joined.items()}

    def read_shot(self, frames_FHWC: NDArray[np.uint8], samples: int = 5) -> Reading:
        """Reads `samples` frames spread over the shot and averages."""
        picked = np.linspace(0, len(frames_FHWC) - 1, samples).round().astype(int)
        mean = {k: v.mean(0).numpy() for k, v in self.read_frames(frames_FHWC[picked]).items()}
        return Reading(mean["present"], {s: mean[s] for s in HERO_SLOTS}, {s: mean[s] for s in FRAME_SLOTS})


def to_reader(frames_FHWC: NDArray[np.uint8]) -> Tensor:
    """uint8 [F, H, W, 3] to the reader's input, float [F, 3, 80, 128] in -1..1."""
    frames = torch.from_numpy(np.ascontiguousarray(frames_FHWC)).permute(0, 3, 1, 2).float() / 127.5 - 1
    if frames.shape[-2:] != (HEIGHT, WIDTH):
        frames = F.interpolate(frames, size=(HEIGHT, WIDTH), mode="area")
    return frames


def save_reader(net: nn.Module, path: Path, note: Mapping[str, str]) -> None:
    """Writes the weights as fp16 safetensors with `note` as metadata."""
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {k: v.half().contiguous() if v.is_floating_point() else v for k, v in net.state_dict().items()}
    save_file(state, path, metadata=dict(note))


def load_reader(path: Path = WEIGHTS) -> Reader:
    """The reader with its trained weights. Raises UserError when the file is missing."""
    if not path.is_file():
        raise UserError(f"the oracle's weights are not at {path}; shotstream.training.oracle.train_reader makes them")
    net = ReaderNet()
    state = load_file(path)
    net.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in state.items()})
    with safe_open(path, "pt") as file:
        return Reader(net, file.metadata())

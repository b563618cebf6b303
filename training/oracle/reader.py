"""The learned reader: small convolutional networks that say what a shot of the story world shows.

Frames are brought to 80x128. One network reads the scene and finds the heads, one reads the look of a hero from
windows that follow its head, one reads the action from a window that stays in place while frames pass: no single
frame tells a walk from its reverse, or a dance from a picture of a dance. The reader does not know captions, and it
is never used as a training signal for the models it judges. Weights are made by train_reader.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from shotstream.runtime.errors import UserError
from shotstream.runtime.model.state_dicts import write_safetensors
from shotstream.training.world.story import ACTIONS, SPECIES

from .slots import FRAME_SLOTS, HERO_SLOTS
from .windows import LOOK, MOVE, cells_to_heads, pixels_per_unit, windows

HEIGHT, WIDTH = 80, 128
SAMPLES = 9  # frames of a shot that are read
LOOK_SLOTS = {slot: values for slot, values in HERO_SLOTS.items() if slot != "action"}
WEIGHTS = Path(__file__).parent / "weights" / "reader.safetensors"


class SceneNet(nn.Module):
    """Frames [N, 3, 80, 128] in -1..1 to logits: "present" [N, 4], "where" [N, 4, 160], frame slots [N, values].

    Whether a species is present is read through its own map of places, so that two heroes do not mix.
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
        self.present = nn.Sequential(nn.Linear(7 * w + len(SPECIES), 64), nn.ReLU(inplace=True), nn.Linear(64, 1))
        self.squeeze = nn.Conv2d(4 * w, 24, 1)
        self.scene = nn.Linear(24 * 5 * 8, 128)
        self.heads = nn.ModuleDict({slot: nn.Linear(128, len(v)) for slot, v in FRAME_SLOTS.items()})

    def forward(self, frames_NCHW: Tensor) -> dict[str, Tensor]:
        fine = self.fine(frames_NCHW)
        coarse = self.coarse(fine)
        mixed = F.relu(fine + F.interpolate(self.back(coarse), scale_factor=2.0, mode="nearest"))
        where_NSP = self.look(mixed).flatten(2)
        seen_NSC = where_NSP.softmax(-1) @ mixed.flatten(2).transpose(1, 2)
        n, count = len(frames_NCHW), len(SPECIES)
        around = coarse.mean((2, 3))[:, None].expand(n, count, -1)
        which = torch.eye(count, device=around.device, dtype=around.dtype).expand(n, count, count)
        present = self.present(torch.cat((seen_NSC, around, which), -1))[..., 0]
        scene = F.relu(self.scene(self.squeeze(coarse).flatten(1)))
        return {"present": present, "where": where_NSP} | {slot: head(scene) for slot, head in self.heads.items()}


class LookNet(nn.Module):
    """Windows [N, 3, 40, 40] and the species meant [N, 4] (one-hot) to logits: "present" [N], look slots [N, values].

    "present" says that a hero of this species stands in the middle of the window.
    """

    def __init__(self) -> None:
        super().__init__()
        self.eye = nn.Sequential(_conv(3, 24, 5, 2), _conv(24, 48, 3, 2), _conv(48, 40, 3, 2), nn.Flatten())
        self.mix = nn.Linear(40 * 25 + len(SPECIES), 96)
        self.present = nn.Linear(96, 1)
        self.heads = nn.ModuleDict({slot: nn.Linear(96, len(v)) for slot, v in LOOK_SLOTS.items()})

    def forward(self, windows_NCHW: Tensor, species_NS: Tensor) -> dict[str, Tensor]:
        seen = self.eye(windows_NCHW)
        mixed = F.relu(self.mix(torch.cat((seen, species_NS.to(seen.dtype)), -1)))
        return {"present": self.present(mixed)[..., 0]} | {slot: head(mixed) for slot, head in self.heads.items()}


class MotionNet(nn.Module):
    """Windows over time [N, T, 3, 40, 48] and the species meant [N, 4] to action logits [N, 6]."""

    def __init__(self) -> None:
        super().__init__()
        self.eye = nn.Sequential(_conv(6, 24, 5, 2), _conv(24, 48, 3, 2), _conv(48, 40, 3, 2), nn.Flatten())
        self.step = nn.Linear(40 * 30, 96)
        self.time = nn.Conv1d(96, 96, 3, padding=1)
        self.mix = nn.Linear(2 * 96 + len(SPECIES), 96)
        self.action = nn.Linear(96, len(ACTIONS))

    def forward(self, windows_NTCHW: Tensor, species_NS: Tensor) -> Tensor:
        now, then = windows_NTCHW[:, :-1], windows_NTCHW[:, 1:]
        pairs = torch.cat((now, 3 * (then - now)), 2)
        steps = F.relu(self.step(self.eye(pairs.flatten(0, 1)))).unflatten(0, pairs.shape[:2])
        over = F.relu(self.time(steps.transpose(1, 2)))
        summary = torch.cat((over.mean(-1), over.amax(-1), species_NS.to(over.dtype)), -1)
        logits: Tensor = self.action(F.relu(self.mix(summary)))
        return logits


class ReaderNet(nn.Module):
    """The three networks; they share nothing but the file."""

    def __init__(self) -> None:
        super().__init__()
        self.scene, self.look, self.motion = SceneNet(), LookNet(), MotionNet()

    def forward(self, frames_TCHW: Tensor) -> dict[str, Tensor]:
        """Probabilities for one shot in -1..1: per frame "present" [T, 4], look slots [T, 4, values] and frame slots
        [T, values]; "heads" [T, 4, 2] in pixels; "action" [4, 6] for the whole shot."""
        logits = self.scene(frames_TCHW)
        said = {slot: logits[slot].softmax(-1) for slot in FRAME_SLOTS}
        heads_TS2 = cells_to_heads(logits["where"].softmax(-1))
        frames, count = len(frames_TCHW), len(SPECIES)
        scale = pixels_per_unit(said["size"].mean(0).argmax(-1)[None]).expand(frames * count)
        which_NS = torch.eye(count).repeat(frames, 1)
        often_NCHW = frames_TCHW.repeat_interleave(count, 0)
        look = self.look(windows(often_NCHW, heads_TS2.flatten(0, 1), scale, LOOK), which_NS)
        middle_NS2 = heads_TS2.median(0).values.repeat(frames, 1)
        moving = windows(often_NCHW, middle_NS2, scale, MOVE).unflatten(0, (frames, count)).transpose(0, 1)
        said["action"] = self.motion(moving, torch.eye(count)).softmax(-1)
        for slot in LOOK_SLOTS:
            said[slot] = look[slot].softmax(-1).unflatten(0, (frames, count))
        # Two opinions: one from the whole frame, one from the window around the head.
        near = look["present"].sigmoid().unflatten(0, (frames, count))
        return said | {"present": (logits["present"].sigmoid() + near) / 2, "heads": heads_TS2}


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
        """Probabilities per frame for uint8 frames [F, H, W, 3] of any size with the aspect 10:16; see ReaderNet.

        The frames are taken as one shot in order: its size sets the windows, and "action" [4, 6] is read once.
        """
        return {slot: value.float() for slot, value in self.net(to_reader(frames_FHWC)).items()}

    def read_shot(self, frames_FHWC: NDArray[np.uint8], samples: int = SAMPLES) -> Reading:
        """Reads `samples` frames spread over the shot and averages; the action is read from all of them together.

        The action network is trained on 9 frames over 33 to 81.
        """
        picked = np.linspace(0, len(frames_FHWC) - 1, samples).round().astype(int)
        said = self.read_frames(frames_FHWC[picked])
        mean = {k: (v if k == "action" else v.mean(0)).numpy() for k, v in said.items()}
        return Reading(mean["present"], {s: mean[s] for s in HERO_SLOTS}, {s: mean[s] for s in FRAME_SLOTS})


def to_reader(frames_FHWC: NDArray[np.uint8]) -> Tensor:
    """uint8 [F, H, W, 3] to the reader's input, float [F, 3, 80, 128] in -1..1."""
    frames = torch.from_numpy(np.ascontiguousarray(frames_FHWC)).permute(0, 3, 1, 2).float() / 127.5 - 1
    if frames.shape[-2:] != (HEIGHT, WIDTH):
        frames = F.interpolate(frames, size=(HEIGHT, WIDTH), mode="area")
    return frames


def save_reader(net: nn.Module, path: Path, note: Mapping[str, str]) -> None:
    """Writes the weights as fp16 safetensors with `note` as metadata."""
    state = {k: v.half().contiguous() if v.is_floating_point() else v for k, v in net.state_dict().items()}
    write_safetensors(path, state, dict(note))


def load_reader(path: Path = WEIGHTS) -> Reader:
    """The reader with its trained weights. Raises UserError when the file is missing or of another network."""
    if not path.is_file():
        raise UserError(f"the oracle's weights are not at {path}; shotstream.training.oracle.train_reader makes them")
    net = ReaderNet()
    try:
        net.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in load_file(path).items()})
    except RuntimeError as error:
        raise UserError(f"{path} holds another network; shotstream.training.oracle.train_reader makes it") from error
    with safe_open(path, "pt") as file:
        return Reader(net, file.metadata())

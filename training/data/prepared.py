"""A folder of prepared videos: its layout and its files. Made by ``prepare``, read by ``video_latents``.

- `dataset.json`: with what everything in it was made (:class:`DatasetInfo`).
- `stories/NAME.safetensors`: one video. Per shot i, counted through the file: `clip.i` ``[F, C, H, W]`` float16, the
  latents of its clip; `singles.i` ``[N, C, H, W]`` float16, frames that were encoded alone; `text.i` ``[rows, D]``, its
  caption's embedding without the zero rows behind it. In the metadata, under `video`, a :class:`PreparedVideo` as json.
- `report.json`: what the last run did.

Files are memory-mapped when read, so any number of processes share one copy. A file is complete or not there.
"""

from __future__ import annotations

from pathlib import Path

import msgspec
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from shotstream.runtime.errors import UserError
from shotstream.runtime.sinks.base import replace_file

FORMAT = "shotstream.videos.1"
INFO, STORIES = "dataset.json", "stories"


class DatasetInfo(msgspec.Struct, frozen=True):
    """With what a folder was prepared. ``latent``: (C, H, W); ``text``: (rows, columns) of an embedding; ``frames``:
    the most pixel frames of a clip; ``context``: the history budget; ``weights``: hashes of codec and text encoder.
    """

    model: str
    weights: dict[str, str]
    latent: tuple[int, int, int]
    text: tuple[int, int]
    fps: int
    frames: int
    context: int
    pace: str
    fit: str
    format: str = FORMAT


class PreparedShot(msgspec.Struct, frozen=True):
    """A shot: its whole caption as the text encoder read it, its frames `[start, end)` in the video, its ``length`` in
    played frames, at which of these (``positions``) frames were encoded alone, and the ``latents`` of its clip.
    """

    caption: str
    interval: tuple[int, int]
    length: int
    positions: tuple[int, ...]
    latents: int


class PreparedVideo(msgspec.Struct, frozen=True):
    """Header of a file: stories of shots. ``fingerprint`` changes with the video, its description and the options."""

    name: str
    fingerprint: str
    source: str
    fps: float
    stories: tuple[tuple[PreparedShot, ...], ...]


def claim(out: Path, info: DatasetInfo) -> None:
    """Make ``out`` a folder of this kind. UserError names what differs if it was prepared with something else."""
    path = out / INFO
    (out / STORIES).mkdir(parents=True, exist_ok=True)
    if not path.exists():
        replace_file(path, msgspec.json.format(msgspec.json.encode(info)))
        return
    other = read_info(out)
    names = [name for name in DatasetInfo.__struct_fields__ if getattr(info, name) != getattr(other, name)]
    if names:
        was = ", ".join(f"{name} {getattr(other, name)}" for name in names)
        raise UserError(f"{out} was prepared with another {', '.join(names)} ({was}); choose another folder with --out")


def read_info(folder: Path) -> DatasetInfo:
    """What a folder was prepared with; UserError if it holds no prepared videos."""
    path = folder / INFO
    try:
        info = msgspec.json.decode(path.read_bytes(), type=DatasetInfo)
    except FileNotFoundError:
        raise UserError(f"{folder} holds no prepared videos; run 'shotstream train prepare' first") from None
    except (OSError, msgspec.DecodeError) as error:
        raise UserError(f"{path} cannot be used ({error}); prepare the videos again into another folder") from error
    if info.format != FORMAT:
        raise UserError(f"{path} has the format {info.format!r}, this version reads {FORMAT!r}; prepare again")
    return info


def write_video(path: Path, tensors: dict[str, Tensor], video: PreparedVideo) -> None:
    """Write one file, atomically; UserError if that fails, most often for lack of space."""
    try:
        replace_file(path, save(tensors, metadata={"video": msgspec.json.encode(video).decode()}))
    except UserError as error:
        raise UserError(
            f"{error}; the videos before it are complete: make room and run the same command again"
        ) from None


def read_header(path: Path) -> PreparedVideo:
    """What a file says about itself, without reading a tensor; UserError if it is damaged."""
    try:
        with safe_open(path, "pt") as file:
            return msgspec.json.decode(file.metadata()["video"], type=PreparedVideo)
    except (OSError, SafetensorError, msgspec.DecodeError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error}); delete it and prepare the videos again") from error

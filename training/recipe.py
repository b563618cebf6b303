"""Recipes: yaml files into frozen dataclasses, every key checked. What a stage does with its part is the stage's
affair.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from shotstream.runtime.errors import UserError
from shotstream.training.data.latents import LatentPlan
from shotstream.training.stages.continuation import ContinuationRecipe
from shotstream.training.stages.coupled import CoupledRecipe
from shotstream.training.stages.dmd import DmdRecipe
from shotstream.training.stages.ode import OdeRecipe
from shotstream.training.stages.perceptual import PerceptualRecipe
from shotstream.training.stages.teacher import TeacherRecipe
from shotstream.training.stages.text import TextRecipe
from shotstream.training.stages.vae import VAERecipe

STAGES = (
    "vae", "text", "latents", "teacher", "ode", "intra", "inter", "continuation", "perceptual", "coupled", "decoder",
    "export",
)  # fmt: skip
"""In the order in which they need each other."""
REGRESSIONS = ("ode", "continuation", "coupled")
"""Stages that predict blocks behind a clean history."""
SHARED_STAGES = ("teacher", "ode", "intra", "inter", "continuation", "coupled")
"""Those that train the transformer, on any number of processes; the others are the first process's work."""
SOURCES = ("world", "videos")
LEFT_TO_START = ("vae", "text", "teacher", "ode", "intra", "inter")
"""Stages that a run which goes on with a model's weights has not, unless its codec goes on learning."""


@dataclass(frozen=True)
class Recipe:
    """One model's whole training. ``decoder`` trains the codec's decoder further, behind fixed latents;
    ``continuation`` and ``coupled`` are last stages of the student, which the reference has not; ``perceptual`` makes
    the network through whose eyes ``coupled`` can compare pictures. Without them these stages are left out.
    ``latents`` are the training stories, ``images`` more of them as single frames, ``held_out`` those of the sample
    sheets.

    ``source`` is "world" (stories rendered from seeds) or "videos": real clips, which ``shotstream train prepare`` has
    put into the folder ``videos``, with ``codec`` ("default", "random", or a folder of weights) for sample sheets and
    for the stage ``inter``.

    ``start`` is nothing, or the weights that training goes on with, in place of those that the stages up to ``inter``
    make: "default", the shipped ones, or a folder as ``export`` writes it. With ``vae: {start: ...}``, of which the
    same holds, the codec goes on learning first. ``context_noise`` is the student's (see
    ``DiTConfig``), in all its stages and in what is exported; ``steady`` is the exported codec's (see
    ``TinyVAEConfig``).
    """

    name: str
    source: str = "world"
    videos: str = ""
    codec: str = "default"
    start: str = ""
    vae: VAERecipe = field(default_factory=VAERecipe)
    decoder: VAERecipe | None = None
    text: TextRecipe = field(default_factory=TextRecipe)
    latents: LatentPlan = field(default_factory=lambda: LatentPlan(stories=1000))
    images: LatentPlan | None = None
    held_out: LatentPlan = field(default_factory=lambda: LatentPlan(stories=25, first_seed=50_000_000))
    teacher: TeacherRecipe = field(default_factory=TeacherRecipe)
    ode: OdeRecipe = field(default_factory=OdeRecipe)
    intra: DmdRecipe = field(default_factory=DmdRecipe)
    inter: DmdRecipe = field(default_factory=lambda: DmdRecipe(steps=20, batch=4, lora_rank=32, seed=3))
    continuation: ContinuationRecipe | None = None
    perceptual: PerceptualRecipe | None = None
    coupled: CoupledRecipe | None = None
    render_workers: int = 2
    context_noise: float = 0.0
    steady: tuple[float, float, float] | None = None

    def __post_init__(self) -> None:
        if self.source not in SOURCES:
            raise UserError(f"recipe {self.name}: source is {' or '.join(SOURCES)}, not {self.source!r}")
        if (self.coupled or self.perceptual) is not None and self.source != "world":
            raise UserError(
                f"recipe {self.name}: stages perceptual and coupled need to know what a shot shows, and {self.source} "
                "do not tell; leave both out"
            )
        if self.coupled is not None and self.coupled.perceptual and self.perceptual is None:
            raise UserError(
                f"recipe {self.name}: coupled compares pictures with a network that stage perceptual makes, and the "
                "recipe has no such stage; add perceptual: {}, or leave perceptual out of coupled"
            )
        if self.start and self.source != "world":
            raise UserError(
                f"recipe {self.name}: start goes on with a model of the story world; with {self.source}, give the "
                "teacher its first weights: teacher: {init: FILE}"
            )

    @property
    def stages(self) -> tuple[str, ...]:
        """The stages that it has, in order."""
        every: tuple[str, ...] = STAGES if self.source == "world" else (*SHARED_STAGES, "export")
        if self.start:
            every = tuple(s for s in every if s not in LEFT_TO_START or (s == "vae" and self.vae.start))
        return tuple(s for s in every if getattr(self, s, True) is not None)


def load_recipe(name_or_file: str) -> Recipe:
    """A shipped recipe by name or a yaml file by path; :class:`UserError` names the file and the key that is wrong."""
    shipped = resources.files("shotstream.training") / "recipes"
    names = sorted(p.name.removesuffix(".yaml") for p in shipped.iterdir() if p.name.endswith(".yaml"))
    if name_or_file in names:
        text, where = (shipped / f"{name_or_file}.yaml").read_text(), f"recipe {name_or_file}"
    else:
        path = Path(name_or_file)
        if not path.is_file():
            raise UserError(f"recipe {name_or_file!r} is neither a file nor a shipped recipe ({', '.join(names)})")
        text, where = path.read_text(), str(path)
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"{where} is not valid yaml: {' '.join(str(error).split())}") from error
    return build(Recipe, values, where)


def explain(recipe: Recipe) -> str:
    """The recipe in full, defaults included, as yaml."""
    return yaml.safe_dump(_plain(asdict(recipe)), sort_keys=False)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, (list, tuple)) else value


def build(kind: Any, value: Any, where: str) -> Any:
    """Convert plain yaml into ``kind`` (dataclasses, tuples, numbers, strings), naming the place of any mismatch."""
    origin = typing.get_origin(kind)
    if origin in (typing.Union, types.UnionType):
        if value is None:
            return None
        return build(next(a for a in typing.get_args(kind) if a is not type(None)), value, where)
    if is_dataclass(kind) and isinstance(kind, type):
        if not isinstance(value, Mapping):
            raise UserError(f"{where} must be a mapping, got {type(value).__name__}")
        hints = typing.get_type_hints(kind)
        known = [f.name for f in fields(kind)]
        for key in value:
            if key not in known:
                raise UserError(f"{where} has the unknown key {key!r}; known are {', '.join(known)}")
        try:
            return kind(**{k: build(hints[k], v, f"{where}: {k}") for k, v in value.items()})
        except TypeError as error:
            raise UserError(f"{where} is incomplete: {error}") from error
    if origin is tuple:
        if not isinstance(value, list):
            raise UserError(f"{where} must be a list, got {type(value).__name__}")
        args = typing.get_args(kind)
        kinds = [args[0]] * len(value) if args[-1] is Ellipsis else list(args)
        if len(kinds) != len(value):
            raise UserError(f"{where} must have {len(kinds)} entries, got {len(value)}")
        return tuple(build(k, v, f"{where}[{i}]") for i, (k, v) in enumerate(zip(kinds, value, strict=True)))
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(kind, type) and (not isinstance(value, kind) or (kind is int and isinstance(value, bool))):
        raise UserError(f"{where} must be {kind.__name__}, got {value!r}")
    return value

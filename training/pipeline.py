"""The stages of a recipe in order, each finding what earlier ones left in the run's folder. Progress is the caller's.

Folder of a run: ``vae/``, ``text/``, ``latents/``, ``images/``, ``held_out/``, ``teacher/``, ``ode/``, ``intra/``,
``inter/``, ``continuation/``, ``perceptual/``, ``coupled/``, ``decoder/`` (checkpoints, logs, sheets) and
``weights/`` (what the runtime loads). A recipe that trains on videos has only the stages of the transformer and
``export``; the rest was prepared.

With several processes the stages that train the transformer are shared; the others are the first process's work.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from shotstream.runtime.config import DiTConfig
from shotstream.runtime.decoders.tiny_vae import TinyVAE
from shotstream.runtime.errors import UserError
from shotstream.runtime.model.state_dicts import write_safetensors
from shotstream.runtime.model.transformer import Transformer
from shotstream.training.data.latents import LatentStories, make_latents
from shotstream.training.data.stories import TrainingStories
from shotstream.training.data.video_latents import CachedText, VideoLatents
from shotstream.training.distributed.launch import ALONE, Team
from shotstream.training.distributed.sharding import whole_state
from shotstream.training.method.lora import adapters_of, merged_state
from shotstream.training.method.perceptual import PerceptualNet
from shotstream.training.method.widen import widened
from shotstream.training.plan import check_memory, plan_stage
from shotstream.training.recipe import SHARED_STAGES, STAGES, Recipe
from shotstream.training.stages.continuation import ContinuationStage
from shotstream.training.stages.coupled import CoupledStage
from shotstream.training.stages.dmd import DmdRecipe, InterStage, IntraStage
from shotstream.training.stages.given import Codec, FrozenText
from shotstream.training.stages.ode import OdeStage
from shotstream.training.stages.pairs import Pairs, make_pairs
from shotstream.training.stages.perceptual import PerceptualStage
from shotstream.training.stages.teacher import TeacherStage, training_attention
from shotstream.training.stages.text import TextStage
from shotstream.training.stages.trainer import Ema, LoopConfig, Stage, run_stage
from shotstream.training.stages.vae import run_vae_stage
from shotstream.training.videos import load_codec, open_videos
from shotstream.training.weights import (
    begin_with,
    load_dit_weights,
    load_text_weights,
    save_weights,
    trained_codec,
    weights_of,
)

Progress = Callable[[str, int, int, dict[str, float]], None]
STUDENTS = ("coupled", "continuation", "inter", "intra", "ode")
"""Stages whose transformer plays, the last one first."""


class Pipeline:
    """Runs single stages of ``recipe`` in ``out``; every method can be killed and called again.

    ``minutes`` and ``steps`` end a stage early, unfinished.
    """

    def __init__(
        self, recipe: Recipe, out: Path, device: str = "cpu", minutes: float | None = None, progress: Progress | None
        = None, *, steps: int | None = None, team: Team | None = None,
    ) -> None:  # fmt: skip
        self.recipe, self.out, self.minutes, self.steps = recipe, out, minutes, steps
        self.team = team or replace(ALONE, device=torch.device(device))
        self.device = self.team.device
        self.progress = progress or (lambda stage, done, total, figures: None)

    def run(self, stage: str) -> bool:
        """Run one stage by name; False when its time slice ended before it was finished."""
        if stage not in STAGES:
            raise UserError(f"there is no stage {stage!r}; stages are {', '.join(STAGES)} and all")
        if stage not in self.recipe.stages:
            raise UserError(_no_stage(stage, self.recipe))
        if self.recipe.start:
            if self.team.first:
                begin_with(self.recipe.start, self.out, without="vae" if self.recipe.vae.start else "")
            self.team.everyone(f"weights that {stage} starts from")
        work: Callable[[], bool] = getattr(self, stage)
        if stage not in SHARED_STAGES:
            return self.team.first_alone(stage, work)
        check_memory(plan_stage(stage, self.recipe, self.team), self.team)
        return work()

    def vae(self) -> bool:
        """Train the codec."""
        path = self._file("vae", "vae")
        if path.exists():
            return True
        recipe = self.recipe.vae if self.minutes is None else replace(self.recipe.vae, minutes=self.minutes)
        if recipe.start:
            recipe = replace(recipe, start=str(weights_of(recipe.start, "vae")))
        run_vae_stage(recipe, path.parent)
        return path.exists()

    def decoder(self) -> bool:
        """Train the codec's decoder further; latents stay as they are."""
        path = self.out / "decoder" / "vae.safetensors"
        if self.recipe.decoder is None or path.exists():
            return True
        minutes = self.recipe.decoder.minutes if self.minutes is None else self.minutes
        start = str(self._file("vae", "vae"))
        recipe = replace(self.recipe.decoder, start=start, frozen_encoder=True, minutes=minutes)
        run_vae_stage(recipe, path.parent)
        return path.exists()

    def text(self) -> bool:
        """Train the text encoder."""
        recipe = self.recipe.text
        stage = TextStage(recipe, self.device)
        done = self._loop(stage, recipe.loop, replace(ALONE, device=self.device))
        stage.ema.swap()
        save_weights(stage.text, stage.text.config.to_json(), self._file("text", "text"))
        return done

    def latents(self) -> bool:
        """Encode the training and the held-out stories."""
        vae, recipe = self._vae(), self.recipe
        deadline = math.inf if self.minutes is None else time.monotonic() + 60 * self.minutes
        for name, plan in (("held_out", recipe.held_out), ("latents", recipe.latents), ("images", recipe.images)):
            tell = partial(self._tell_shards, name)
            if plan and not make_latents(vae, plan, self.out / name, recipe.render_workers, deadline, tell):
                return False
        return True

    def _tell_shards(self, name: str, done: int, total: int) -> None:
        self.progress(name, done, total, {})

    def teacher(self) -> bool:
        """Train the bidirectional next-shot model."""
        recipe = self.recipe.teacher
        stage = TeacherStage(recipe, self._sources(), self._held_out(), self._text(), self._codec(), team=self.team)
        done = self._loop(stage, recipe.loop, self.team)
        self._keep(stage.ema, stage.model, self._file("teacher", "dit"))
        return done

    def ode(self) -> bool:
        """Teacher trajectories, then the causal student."""
        recipe = self.recipe.ode
        text, data = self._text(), self._data()
        teacher = self._dit("teacher").to(self.device)
        folder = self.out / "ode" / "pairs"
        make_pairs(teacher.eval(), text, data, recipe, folder, lambda i, n: self.progress("pairs", i, n, {}), self.team)
        student = self._dit("teacher").train() if self.team.mesh is not None else teacher.train()
        stage = OdeStage(recipe, student, text, Pairs(folder), self._held_out(), self._codec(), self.team)
        done = self._loop(stage, recipe.loop, self.team)
        self._keep(stage.ema, stage.model, self._file("ode", "dit"))
        return done

    def intra(self) -> bool:
        """Self-forcing distillation behind true history."""
        stage = IntraStage(self.recipe.intra, *self._dmd_parts("ode"))
        return self._dmd(stage, self.recipe.intra)

    def inter(self) -> bool:
        """Self-forcing distillation behind the model's own history."""
        stage = InterStage(self.recipe.inter, *self._dmd_parts("intra"))
        return self._dmd(stage, self.recipe.inter)

    def continuation(self) -> bool:
        """How a shot goes on, from true clips."""
        recipe = self.recipe.continuation
        if recipe is None:
            return True
        stage = ContinuationStage(
            recipe, self._dit("inter").train(), self._dit("inter"), self._text(), self._data(), self._held_out(),
            self._codec(), self.team,
        )  # fmt: skip
        done = self._loop(stage, recipe.loop, self.team)
        self._keep(stage.ema, stage.model, self._file("continuation", "dit"), stage.before, recipe.blend)
        return done

    def perceptual(self) -> bool:
        """The network through whose eyes stage ``coupled`` compares pictures."""
        recipe = self.recipe.perceptual
        if recipe is None:
            return True
        learnt, held_out = (
            LatentStories(self.out / name, plan)
            for name, plan in (("latents", self.recipe.latents), ("held_out", self.recipe.held_out))
        )
        stage = PerceptualStage(recipe, learnt, held_out, self.device)
        done = self._loop(stage, recipe.loop, replace(ALONE, device=self.device))
        stage.finished().save(self._file("perceptual", "net"))
        return done

    def coupled(self) -> bool:
        """True shots from noise that knows the choices."""
        recipe = self.recipe.coupled
        if recipe is None:
            return True
        before = "inter" if self.recipe.continuation is None else "continuation"
        student = self._dit(before)
        if recipe.dim:
            student = widened(student, recipe.dim)
        stage = CoupledStage(
            recipe, student.train(), self._text(), self._sources(), self._held_out(), self._codec(), self.team,
            PerceptualNet.load(self._file("perceptual", "net")) if recipe.perceptual else None,
        )  # fmt: skip
        done = self._loop(stage, recipe.loop, self.team)
        self._keep(stage.ema, stage.model, self._file("coupled", "dit"))
        return done

    def export(self) -> bool:
        """Half-precision copies of the last finished stage's weights, as the runtime loads them."""
        last = next((s for s in STUDENTS if self._file(s, "dit").exists()), None)
        if last is None:
            raise UserError(f"{self.out} holds no trained student yet; run 'shotstream train ode' first")
        weights = self.out / "weights"
        student = load_dit_weights(self._file(last, "dit"), last)
        student.config = self._of_student(student.config)
        save_weights(student, student.config.to_json(), weights / "dit.safetensors", torch.float16)
        for sheet in sorted((self.out / last).glob("sheet_*.png"))[-1:]:
            shutil.copyfile(sheet, weights / "sheet.png")
        if self.recipe.source == "videos":
            return True  # text encoder and codec are those of the model's own folder
        text = load_text_weights(self._file("text", "text"), "text")
        save_weights(text, text.config.to_json(), weights / "text.safetensors", torch.float16)
        codec = TinyVAE.load(trained_codec(self.out))
        codec.config = replace(codec.config, steady=self.recipe.steady)
        codec.save(weights / "vae.safetensors", torch.float16)
        return True

    def _dmd(self, stage: IntraStage | InterStage, recipe: DmdRecipe) -> bool:
        done = self._loop(stage, recipe.loop, self.team)
        self._keep(stage.ema, stage.generator, self._file(stage.name, "dit"))
        return done

    def _dmd_parts(self, before: str) -> tuple[Any, ...]:
        generator, fake, real = self._dit(before).train(), self._dit("teacher").train(), self._dit("teacher")
        return generator, fake, real, self._text(), self._data(), self._held_out(), self._codec(), self.team

    def _loop(self, stage: Stage, loop: LoopConfig, team: Team) -> bool:
        return run_stage(
            stage, loop, self.out / stage.name, self.minutes,
            lambda done, total, figures: self.progress(stage.name, done, total, figures), team=team, steps=self.steps,
        )  # fmt: skip

    def _keep(
        self, ema: Ema, model: Transformer, path: Path, before: Transformer | None = None, share: float = 1.0
    ) -> None:
        """Leave the averaged weights in place and write them, adapters merged and beside; later stages find them.

        With the model ``before``, what is written is ``share`` of the weights and the rest of that model's.
        """
        ema.swap()
        tensors = whole_state(model)
        if before is not None:
            tensors = {name: torch.lerp(old, tensors[name], share) for name, old in whole_state(before).items()}
        if self.team.first:
            save_weights(merged_state(tensors), model.config.to_json(), path)
            adapters = adapters_of(tensors)
            if adapters:
                write_safetensors(path.with_name("lora.safetensors"), adapters, {"format": "pt"})
        self.team.everyone(f"{path.parent.name} kept")

    def _file(self, stage: str, part: str) -> Path:
        return self.out / stage / f"{part}.safetensors"

    def _dit(self, stage: str) -> Transformer:
        """A stage's transformer, in main memory: stages put it where it works."""
        model = load_dit_weights(self._file(stage, "dit"), stage)
        blocks: Any = model.blocks
        for block in blocks:
            block.attention = training_attention(self.device)
        model.config = self._of_student(model.config)
        return model

    def _of_student(self, config: DiTConfig) -> DiTConfig:
        """The recipe's ways to play, which no weight tells."""
        return replace(config, context_noise=self.recipe.context_noise)

    def _text(self) -> FrozenText:
        if self.recipe.source == "videos":
            return CachedText(self._videos()).to(self.device)
        text = load_text_weights(self._file("text", "text"), "text")
        return text.eval().requires_grad_(False).to(self.device)

    def _vae(self) -> TinyVAE:
        path = self._file("vae", "vae")
        if not path.exists():
            raise UserError(f"{path} does not exist; run 'shotstream train vae' first")
        return TinyVAE.load(path).eval().requires_grad_(False).to(self.device)

    def _codec(self) -> Codec:
        if self.recipe.source == "videos":
            return load_codec(self._videos().info, self.recipe.codec, self.device)
        return self._vae()

    def _data(self) -> TrainingStories:
        if self.recipe.source == "videos":
            return self._videos()
        return LatentStories(self.out / "latents", self.recipe.latents)

    def _sources(self) -> list[TrainingStories]:
        """Stories with clips, and those of single pictures."""
        sources = [self._data()]
        if self.recipe.images is not None and self.recipe.source == "world":
            sources.append(LatentStories(self.out / "images", self.recipe.images))
        return sources

    def _held_out(self) -> TrainingStories:
        if self.recipe.source == "videos":
            return self._videos()  # sheets show what is trained on
        return LatentStories(self.out / "held_out", self.recipe.held_out)

    def _videos(self) -> VideoLatents:
        return open_videos(Path(self.recipe.videos), self.recipe.teacher.model)


def _no_stage(stage: str, recipe: Recipe) -> str:
    why = f"has no stage {stage}"
    if recipe.source == "videos" and stage in STAGES and stage not in SHARED_STAGES:
        why = f"trains on videos, which have no stage {stage}; 'shotstream train prepare' makes their latents and texts"
    return f"recipe {recipe.name} {why}; its stages are {', '.join(recipe.stages)}"

"""What `export engines` does: an export's graphs to engines in the store, by way of eight bits where asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from shotstream.export.engine_store.entry import EngineKey, Entry
from shotstream.export.engine_store.store import EngineStore
from shotstream.export.exporting import PRECISIONS
from shotstream.export.fp8.calibration import LARGEST_LOSS, Report, calibrate, read_report, shots_of
from shotstream.export.fp8.exporting import eight_bit_export
from shotstream.export.fp8.products import FP8_FOLDER
from shotstream.export.graphs.cache_chunk_attention import VERSION
from shotstream.export.graphs.step import STEP
from shotstream.export.graphs.step_in_place import CONTEXT_IN_PLACE, STEP_IN_PLACE
from shotstream.export.manifest import Manifest, check_files
from shotstream.export.segments.cut import TEXT, signatures
from shotstream.export.segments.engine import NATIVE, OURS
from shotstream.export.trt.build import BuildOrder, build_apart
from shotstream.export.trt.keys import engine_key
from shotstream.export.trt.product import RTX, Product, engine_targets
from shotstream.runtime.config import DiTConfig
from shotstream.runtime.errors import UserError
from shotstream.runtime.runtime import Runtime

NAMES = {"fp16": "float16", "bf16": "bfloat16", "fp8": "float8"}
"""Precisions as the command line has them, and as manifests have them."""
PLUGIN = "plugin"
"""A third attention: our kernel as a plugin in the whole step."""
ATTENTIONS = (OURS, NATIVE, PLUGIN)
MIB = 2**20


@dataclass(frozen=True)
class CalibrationChoice:
    """Whose shots are played to calibrate eight bits. model None: the one that was exported; story None: the demo."""

    model: str | None
    weights: str
    story: Path | None
    accept_loss: bool


@dataclass(frozen=True)
class Row:
    """One engine asked for. built: now, rather than before."""

    name: str
    entry: Entry
    built: bool


def build_engines(
    store: EngineStore,
    folder: Path,
    product: Product,
    wanted: tuple[str, ...],
    manifest: Manifest,
    names: list[str],
    console: Console,
    plugin: bool = False,
) -> list[Row]:
    """An engine of each graph, in order; each is complete before the next is begun. wanted: GPUs to build for. plugin:
    our attention kernel goes into the engine (experimental).
    """
    targets = engine_targets(product, wanted)
    rows = []
    timing = ""
    if product.needs_gpu_to_build:
        timing = str(store.root / f"{product.name}-{product.version}-{targets[0]}.timing")
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("engines", total=len(names))

        def one(number: int, name: str) -> Row:
            key: EngineKey = engine_key(manifest, name, product, targets, str(VERSION) if plugin else "")

            def make(plan: Path) -> Mapping[str, float]:
                check_files(folder, manifest, [name])
                if not console.is_terminal:
                    console.print(f"{number + 1}/{len(names)} {name}")
                graph = folder / manifest.graph(name).file
                order = BuildOrder(product.name, str(graph), str(plan), key.profiles, wanted, timing)
                return _with_plugin(order, manifest) if plugin else build_apart(order)

            def wait() -> None:
                console.print(f"{name} is being built by another process; waiting for it")

            return Row(name, *store.get_or_build(key, make, wait))

        for number, name in enumerate(names):
            progress.update(task, description=name, completed=number)
            rows.append(one(number, name))
        progress.update(task, description="done", completed=len(names))
    return rows


def _with_plugin(order: BuildOrder, manifest: Manifest) -> Mapping[str, float]:
    from shotstream.export.trt.attention_kernel import ARCHITECTURES, configuration
    from shotstream.export.trt.attention_plugin import build_with_plugin

    config = DiTConfig.from_dict(dict(manifest.source.config))
    for architecture in ARCHITECTURES:  # a plugin that refuses a node may take the whole builder down
        configuration(config.head_dim, manifest.source.precision, architecture)
    made = build_with_plugin(order)
    if made.nodes != config.layers:
        raise UserError(f"{made.nodes} of {config.layers} attentions became plugins; the engine would mix two of them")
    return {"seconds": made.seconds, "peak_mb": made.peak_mb}


def chosen_graphs(manifest: Manifest, product: Product, attention: str, only: str | None) -> list[str]:
    """Names of the graphs to build for an attention of :data:`ATTENTIONS`: the segments, or the whole step. Decoders
    and text encoders are built when named.

    only: some of them, separated by commas. UserError for what the export or the product has not.
    """
    if attention not in ATTENTIONS:
        raise UserError(f"there is no --attention '{attention}'; there is {', '.join(ATTENTIONS)}")
    if attention == PLUGIN and product.name != RTX:
        raise UserError(
            "--attention plugin is for TensorRT-RTX; leave it away, and our attention runs between segments"
        )
    config = DiTConfig.from_dict(dict(manifest.source.config))
    whole = [STEP] if attention == PLUGIN else [STEP, CONTEXT_IN_PLACE, STEP_IN_PLACE]
    fitting = list(signatures(config)) if attention == OURS else whole
    there = [name for name in fitting if name in manifest.graphs]
    if not there and only is None:
        lacking = "segments" if attention == OURS else STEP
        raise UserError(f"the export has no {lacking}; make one with: shotstream export onnx --only {lacking}")
    if attention != OURS and TEXT in manifest.graphs:
        there.insert(0, TEXT)
    if only is None:
        return there
    if attention == OURS:  # and what lies around the transformer
        there += [name for name in manifest.graphs if name not in (*there, STEP, CONTEXT_IN_PLACE, STEP_IN_PLACE)]
    wanted = [name.strip() for name in only.split(",")]
    if unknown := [name for name in wanted if name not in there]:
        raise UserError(f"the export has no {', '.join(unknown)} for this; it has {', '.join(there)}")
    return wanted


def check_precision(folder: Path, manifest: Manifest, wanted: str | None) -> None:
    """Graphs have the precision that they were exported in; fp8 is made of either of the 16-bit ones."""
    if wanted is not None and wanted not in NAMES:
        raise UserError(f"there is no --precision '{wanted}'; there is {', '.join(NAMES)}")
    there = manifest.source.precision
    fits = {None: (there,), "fp8": ("float16", "bfloat16")}.get(wanted) or (NAMES[str(wanted)],)
    if there not in fits:
        raise UserError(
            f"{folder} was exported in {there}; export it with --precision {fits[-1]} into another folder, "
            f"and build from there"
        )


def to_eight_bit(folder: Path, manifest: Manifest, choice: CalibrationChoice, console: Console) -> Manifest:
    """Make the export's eight-bit form in its folder `FP8_FOLDER`, calibrated now if it was not before.

    Raises UserError if it costs more than `LARGEST_LOSS` and that was not accepted.
    """
    report = read_report(folder / FP8_FOLDER)
    if report is None or report.weights_hash != manifest.source.weights_hash:
        report = _calibrated(manifest, choice, console)
    _show_accuracy(report, console)
    if report.loss() > LARGEST_LOSS and not choice.accept_loss:
        raise UserError(
            f"in eight bits the film's latents are off by {report.loss():.1%} (root of mean squares), and "
            f"{LARGEST_LOSS:.0%} is the limit; build bf16, or give --accept-loss"
        )
    return eight_bit_export(folder, report, lambda name: console.print(f"{name} in eight bits"))


def _calibrated(manifest: Manifest, choice: CalibrationChoice, console: Console) -> Report:
    source, name = manifest.source, choice.model or manifest.source.model
    shots = shots_of(choice.story)
    with console.status(f"loading {name} ...") as status:
        dtype = PRECISIONS[source.precision]
        with Runtime(name, weights=choice.weights, engine="torch-segments", dtype=dtype) as runtime:
            if runtime.parts.weights_hash != source.weights_hash:
                raise UserError(f"the weights of '{name}' are not those that were exported; give them with --weights")
            return calibrate(runtime, shots, tell=lambda what: status.update(f"playing shots, {what} ..."))


def show_built(rows: list[Row], console: Console) -> None:
    """A table of seconds, sizes and the building processes' memory."""
    table = Table(box=None, header_style="bold")
    for column in ("engine", "s", "MiB", "peak MiB", ""):
        table.add_column(column, justify="left" if column in ("engine", "") else "right")
    for row in rows:
        built = row.entry.built
        figures = (f"{built.seconds:.1f}", f"{built.nbytes / MIB:.1f}", f"{built.peak_mb:.0f}")
        table.add_row(row.name, *figures, "" if row.built else "was there")
    every = [row.entry.built for row in rows]
    table.add_row(
        f"{len(rows)} engines",
        f"{sum(row.entry.built.seconds for row in rows if row.built):.1f}",
        f"{sum(built.nbytes for built in every) / MIB:.1f}",
        f"{max(built.peak_mb for built in every):.0f}",
        style="bold",
    )
    console.print(table)


def _show_accuracy(report: Report, console: Console) -> None:
    table = Table(box=None, header_style="bold")
    table.add_column("in eight bits")
    for column in ("products", *(f"error after {n}" for n in report.layer_sets["all"].errors), "PSNR, dB"):
        table.add_column(column, justify="right")
    for name, found in report.layer_sets.items():
        errors = (f"{error:.2%}" for error in found.errors.values())
        table.add_row(name, str(found.products), *errors, f"{found.psnr:.1f}")
    console.print(table)

"""The commands under `export engines`: build into the store, and list, verify and prune what is there."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shotstream.runtime.errors import UserError

if TYPE_CHECKING:
    from shotstream.export.engine_store.entry import Entry
    from shotstream.export.engine_store.store import EngineStore

Store = Annotated[Path | None, typer.Option("--store", help="Folder of engines; default: ~/.cache/shotstream/engines.")]
_DAY, _GB, _MIB = 86400, 1e9, 2**20


def mount(commands: typer.Typer) -> None:
    """Add `engines` with its commands."""
    group = typer.Typer(help="Build engines, and look after those that are there.", rich_markup_mode=None)
    group.callback(invoke_without_command=True)(build)
    group.command("list")(list_engines)
    group.command("verify")(verify)
    group.command("prune")(prune)
    commands.add_typer(group, name="engines")


def build(
    context: typer.Context,
    target: Annotated[str, typer.Option("--target", help="tensorrt or tensorrt-rtx.")] = "tensorrt-rtx",
    source: Annotated[Path | None, typer.Option("--from", help="Folder of: shotstream export onnx.")] = None,
    precision: Annotated[
        str | None, typer.Option("--precision", help="bf16, fp16, or fp8 with a calibration; default: as exported.")
    ] = None,
    store: Store = None,
    gpu: Annotated[
        list[str] | None, typer.Option("--gpu", help="tensorrt-rtx: only for sm_89, sm_120 ...; may be repeated.")
    ] = None,
    only: Annotated[str | None, typer.Option("--only", help="Some graphs, such as head,mid_0.")] = None,
    attention: Annotated[
        str,
        typer.Option("--attention", help="ours, between segments; native, of the product; plugin (experimental)."),
    ] = "ours",
    accept_loss: Annotated[bool, typer.Option("--accept-loss", help="fp8: whatever it does to the film.")] = False,
    model: Annotated[
        str | None, typer.Option("--model", help="fp8: whose shots are played; default: the model exported.")
    ] = None,
    weights: Annotated[
        str, typer.Option("--weights", help="fp8: its weights: default, random, or a folder.")
    ] = "default",
    story: Annotated[Path | None, typer.Option("--story", help="fp8: a story; its first two shots are played.")] = None,
) -> None:
    """Build the engines of an export into the store; those that are there are kept."""
    if context.invoked_subcommand is not None:
        return
    from rich.console import Console

    from shotstream.export.engine_store import building as building
    from shotstream.export.engine_store.store import EngineStore, default_store
    from shotstream.export.fp8.products import FP8_FOLDER
    from shotstream.export.manifest import read_manifest
    from shotstream.export.segments.engine import OURS
    from shotstream.export.trt.product import PRODUCTS, check_targets, load_product, missing_to_build

    if target not in PRODUCTS:
        raise UserError(f"there is no --target '{target}'; there is {', '.join(PRODUCTS)}")
    if source is None:
        raise UserError("say which export to build with --from DIR; make one with: shotstream export onnx --out DIR")
    if missing := missing_to_build(target):
        raise UserError(f"{target} cannot build here: {'; '.join(missing)}")
    console = Console(stderr=True, highlight=False)
    product, targets = load_product(target), tuple(gpu or ())
    manifest = read_manifest(source)
    building.check_precision(source, manifest, precision)
    check_targets(product, targets, building.NAMES.get(precision or "", manifest.source.precision))
    names = building.chosen_graphs(manifest, product, attention, only)
    if precision == "fp8" and attention != OURS:
        raise UserError("fp8 is for segments; leave --attention away")
    if precision == "fp8":
        choice = building.CalibrationChoice(model, weights, story, accept_loss)
        manifest = building.to_eight_bit(source, manifest, choice, console)
        source = source / FP8_FOLDER
    held = EngineStore(store or default_store())
    plugin = attention == building.PLUGIN
    rows = building.build_engines(held, source, product, targets, manifest, names, console, plugin)
    building.show_built(rows, console)
    typer.echo(str(held.root))


def list_engines(store: Store = None) -> None:
    """Show every engine of the store."""
    from rich.console import Console
    from rich.table import Table

    held = _store(store)
    table = Table(box=None, header_style="bold")
    for column in ("graph", "product", "precision", "for", "weights", "MiB", "last used"):
        table.add_column(column, justify="right" if column == "MiB" else "left")
    total, broken = 0, []
    for entry, why in held.entries():
        if entry is None:
            broken.append(why)
            continue
        key, built = entry.key, entry.built
        total += built.nbytes
        table.add_row(
            key.graph,
            f"{key.product} {key.version}",
            key.precision,
            " ".join(key.targets) or "any that it knows",
            key.weights_hash[:12],
            f"{built.nbytes / _MIB:.1f}",
            time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.used)),
        )
    Console(highlight=False).print(table)
    for why in broken:
        typer.echo(why)
    typer.echo(f"{total / _GB:.2f} GB in {held.root}")


def verify(store: Store = None) -> None:
    """Read every engine and compare it with what was built; exit code 1 if one differs."""
    held = _store(store)
    wrong = held.verify()
    for sentence in wrong:
        typer.echo(sentence)
    typer.echo(f"{sum(1 for _ in held.entries()) - len(wrong)} engines are as they were built, {len(wrong)} are not")
    if wrong:
        raise typer.Exit(1)


def prune(
    store: Store = None,
    older: Annotated[float | None, typer.Option("--older", min=0, help="Days since an engine was last used.")] = None,
    most: Annotated[float | None, typer.Option("--most", min=0, help="GB to keep, of those used last.")] = None,
    keep: Annotated[
        list[Path] | None, typer.Option("--keep", help="Only engines of this export stay; may be repeated.")
    ] = None,
) -> None:
    """Remove engines by age, size or export; without an option only what is broken or was left behind."""
    held = _store(store)
    unwanted = _unwanted(held, older, most, keep)
    gone = held.prune(lambda entry: entry.folder.name in unwanted)
    for name in gone:
        typer.echo(f"removed {name}")
    typer.echo(f"{len(gone)} removed")


def _store(folder: Path | None) -> EngineStore:
    from shotstream.export.engine_store.store import EngineStore, default_store

    root = folder or default_store()
    if not root.is_dir():
        raise UserError(f"there is no engine store at {root}; one is made by: shotstream export engines --from DIR")
    return EngineStore(root)


def _unwanted(store: EngineStore, older: float | None, most: float | None, keep: list[Path] | None) -> set[str]:
    """Names of the engines that go."""
    there = sorted((entry for entry, _ in store.entries() if entry is not None), key=lambda entry: -entry.used)
    gone: list[Entry] = []
    if older is not None:
        gone += [entry for entry in there if time.time() - entry.used > older * _DAY]
    if most is not None:
        total = 0
        for entry in there:
            total += entry.built.nbytes
            gone += [entry] if total > most * _GB else []
    if keep is not None:
        gone += filter(_not_of(keep), there)
    return {entry.folder.name for entry in gone}


def _not_of(exports: list[Path]) -> Callable[[Entry], bool]:
    from shotstream.export.fp8.products import FP8_FOLDER
    from shotstream.export.manifest import MANIFEST, read_manifest
    from shotstream.export.trt.keys import graph_hash

    inner = [path / FP8_FOLDER for path in exports if (path / FP8_FOLDER / MANIFEST).exists()]
    used = {graph_hash(graph) for path in (*exports, *inner) for graph in read_manifest(path).graphs.values()}
    return lambda entry: entry.key.graph_sha256 not in used

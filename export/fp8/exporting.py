"""From an export in 16 bits to one whose blocks' products are in eight: a folder of its own inside the first."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from shotstream.export.exporting import locked
from shotstream.export.files import hash_of, writing
from shotstream.export.fp8.calibration import Report, read_report, write_report
from shotstream.export.fp8.products import FP8_FOLDER, products_of, quantise_graph
from shotstream.export.manifest import MANIFEST, Graph, Manifest, check_files, read_manifest, write_manifest
from shotstream.export.segments.cut import signatures
from shotstream.runtime.config import DiTConfig
from shotstream.runtime.errors import UserError


def eight_bit_export(folder: Path, report: Report, tell: Callable[[str], None] = lambda name: None) -> Manifest:
    """Round the segments of an export and return the manifest of what came of it; what is there already is kept.

    Raises UserError if the calibration is of another model, or something cannot be written.
    """
    manifest = read_manifest(folder)
    if report.weights_hash != manifest.source.weights_hash:
        raise UserError(
            f"the calibration is of other weights than the export in {folder}; delete it, and calibrate again"
        )
    target = folder / FP8_FOLDER
    with locked(target):
        made = _begin(target, manifest, report)
        amax = report.largest_inputs()
        config = DiTConfig.from_dict(dict(manifest.source.config))
        for segment in signatures(config):
            if _whole(target, made, segment):
                continue
            check_files(folder, manifest, [segment])
            tell(segment)
            rounded = {kind: amax[place] for kind, place in products_of(segment, config).items() if place in amax}
            made = made.with_graph(segment, _write(folder, target, manifest.graph(segment), rounded))
            write_manifest(target, made)
    return made


def _begin(target: Path, manifest: Manifest, report: Report) -> Manifest:
    """What is there of this export and this calibration; otherwise a fresh start."""
    config = DiTConfig.from_dict(dict(manifest.source.config))
    segments = {name: dict(manifest.graph(name).sha256) for name in signatures(config)}
    digest = hashlib.sha256(repr(sorted((name, sorted(files.items())) for name, files in segments.items())).encode())
    versions = {**manifest.source.versions, "rounded from": digest.hexdigest()}
    source = replace(manifest.source, precision=FP8_FOLDER, versions=versions)
    if (target / MANIFEST).exists() and read_report(target) == report:
        there = read_manifest(target)
        if there.source == source:
            return there
    (target / MANIFEST).unlink(missing_ok=True)
    write_report(target, report)
    return Manifest(source)


def _whole(target: Path, made: Manifest, name: str) -> bool:
    if name in made.graphs:
        with suppress(UserError):
            check_files(target, made, [name])
            return True
    return False


def _write(folder: Path, target: Path, graph: Graph, rounded: dict[str, float]) -> Graph:
    """One graph, rounded or as it is."""
    with writing(target / graph.file):
        (target / graph.file).parent.mkdir(parents=True, exist_ok=True)
        if rounded:
            quantise_graph(folder / graph.file, target / graph.file, rounded)
            files = [graph.file, f"{graph.file}.data"]
        else:
            files = list(graph.sha256)
            for file in files:
                _same(folder / file, target / file)
    return replace(graph, sha256={file: hash_of(target / file) for file in files})


def _same(file: Path, target: Path) -> None:
    """The same file under another name where the file system can, else a copy."""
    target.unlink(missing_ok=True)
    try:
        os.link(file, target)
    except OSError:
        shutil.copy2(file, target)

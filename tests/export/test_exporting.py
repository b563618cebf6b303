"""A folder of graphs: resumed, never mixed, never left broken."""

from __future__ import annotations

import dataclasses
import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from shotstream.export.exporting import export_graphs
from shotstream.export.graphs import spec as graphs
from shotstream.export.graphs.spec import GraphSpec
from shotstream.export.manifest import MANIFEST, Manifest, Source, check_files, read_manifest
from shotstream.runtime.errors import UserError

SOURCE = Source("toy", "ab12", {"dim": 4, "patch": [1, 2, 2]}, (4, 2, 2), "float32", 20, {"torch": "2"})


def spec(width: int = 4) -> GraphSpec:
    return GraphSpec(nn.Linear(width, 3), {"x": torch.randn(2, width)}, ["y"], {"x": {0: "rows"}}, {"rows": (1, 8)})


def made_of(folder: Path, *names: str, source: Source = SOURCE, **wide: int) -> tuple[Manifest, list[str]]:
    asked: list[str] = []

    def one(name: str) -> Callable[[], GraphSpec]:
        def make() -> GraphSpec:
            asked.append(name)
            return spec(wide.get(name, 4))

        return make

    return export_graphs(folder, source, {name: one(name) for name in names}), asked


def test_what_is_there_is_kept_and_what_is_missing_is_made(tmp_path: Path) -> None:
    _, first = made_of(tmp_path, "a")
    manifest, second = made_of(tmp_path, "a", "b")
    assert (first, second) == (["a"], ["b"])
    assert read_manifest(tmp_path) == manifest
    (port,) = manifest.graph("b").inputs
    assert (port.name, port.dtype, port.shape) == ("x", "float32", ("rows", 4))
    assert manifest.graph("b").outputs[0].shape == ("rows", 3)


def test_an_interrupted_export_goes_on(tmp_path: Path) -> None:
    def stopped() -> GraphSpec:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_graphs(tmp_path, SOURCE, {"a": spec, "b": stopped})
    assert list(read_manifest(tmp_path).graphs) == ["a"]
    (tmp_path / ".export-killed").mkdir()
    assert made_of(tmp_path, "a", "b")[1] == ["b"]
    assert not (tmp_path / ".export-killed").exists()


def test_a_changed_file_is_noticed_and_made_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    manifest, _ = made_of(tmp_path, "a")
    with (tmp_path / "a.onnx").open("ab") as file:
        file.write(b"x")
    with pytest.raises(UserError, match="is not the file that was exported"):
        check_files(tmp_path, manifest)
    assert made_of(tmp_path, "a")[1] == ["a"]
    assert "is not the file that was exported" in caplog.text
    check_files(tmp_path, read_manifest(tmp_path))


@pytest.mark.parametrize(
    ("change", "named"),
    [({"weights_hash": "cd34"}, "weights hash"), ({"precision": "float16"}, "precision"), ({"opset": 23}, "opset")],
)
def test_graphs_of_two_sources_never_mix(tmp_path: Path, change: dict[str, Any], named: str) -> None:
    made_of(tmp_path, "a")
    with pytest.raises(UserError, match=f"differ in {named}; choose another folder"):
        made_of(tmp_path, "b", source=dataclasses.replace(SOURCE, **change))
    assert list(read_manifest(tmp_path).graphs) == ["a"]


def test_other_versions_of_packages_are_no_other_source(tmp_path: Path) -> None:
    made_of(tmp_path, "a")
    assert made_of(tmp_path, "a", source=dataclasses.replace(SOURCE, versions={"torch": "3"}))[1] == []


def test_large_weights_lie_beside_the_graph(tmp_path: Path) -> None:
    manifest, _ = made_of(tmp_path, "a", a=1 << 18)
    assert sorted(manifest.graph("a").sha256) == ["a.onnx", "a.onnx.data"]
    assert (tmp_path / "a.onnx").stat().st_size < 1 << 16


def test_a_full_disk_is_said_and_leaves_nothing_half_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made_of(tmp_path, "a")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(graphs.shutil, "move", full)
    with pytest.raises(UserError, match=r"cannot write .*No space left on device; free some space"):
        made_of(tmp_path, "a", "b")
    assert list(read_manifest(tmp_path).graphs) == ["a"]
    assert not [path for path in tmp_path.iterdir() if path.name.startswith((".export-", "b"))]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "is not a manifest"),
        (b"[]", "is not a manifest"),
        (b'{"format": 9}', "has format 9"),
        (None, "there is no"),
    ],
)
def test_a_folder_that_is_no_export_is_refused(tmp_path: Path, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / MANIFEST).write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_manifest(tmp_path)


def test_a_file_in_the_folders_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "there").touch()
    with pytest.raises(UserError, match="is a file; choose another folder"):
        made_of(tmp_path / "there", "a")

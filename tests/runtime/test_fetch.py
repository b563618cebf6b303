"""Fetching from local folders that imitate the real ones, and what is said when something is wrong."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from shotstream.runtime import fetch as fetching
from shotstream.runtime.errors import UserError
from shotstream.runtime.fetch import ManifestFile, fetch, known_sha256, parse_manifest, read_manifest

CONTENT = {"config.json": b"{}", "google/umt5-xxl/tokenizer.json": b"tokens", "Wan2.1_VAE.pth": b"codec" * 1000}


def entry(path: str, *, pinned: bool = True, folder: str = "Base") -> ManifestFile:
    data = CONTENT[path]
    return ManifestFile(
        repository="org/Base",
        revision="a" * 40,
        path=path,
        target=f"{folder}/{path}",
        also=("wan_models",),
        bytes=len(data) if pinned else None,
        sha256=hashlib.sha256(data).hexdigest() if pinned else None,
    )


FILES = tuple(entry(path) for path in CONTENT)


def source_folder(root: Path, layout: str = "") -> Path:
    for path, data in CONTENT.items():
        (root / layout / path).parent.mkdir(parents=True, exist_ok=True)
        (root / layout / path).write_bytes(data)
    return root


@pytest.mark.parametrize("layout", ["Base", "wan_models", ""])
def test_a_local_folder_in_any_known_layout_is_copied_and_checked(tmp_path: Path, layout: str) -> None:
    report = fetch("m", source_folder(tmp_path / "src", layout), tmp_path / "dst", files=FILES)
    assert [file.action for file in report.files] == ["copied"] * 3
    assert report.not_pinned == ()
    for path, data in CONTENT.items():
        assert (tmp_path / "dst" / "Base" / path).read_bytes() == data


def test_a_second_fetch_keeps_everything_and_does_not_hash_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = source_folder(tmp_path / "src")
    fetch("m", source, tmp_path / "dst", files=FILES)
    monkeypatch.setattr(fetching, "file_sha256", lambda *_: pytest.fail("hashed again"))
    assert {file.action for file in fetch("m", source, tmp_path / "dst", files=FILES).files} == {"kept"}
    assert known_sha256(tmp_path / "dst", "Base/config.json") == hashlib.sha256(b"{}").hexdigest()


def test_a_source_with_other_bytes_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    source = source_folder(tmp_path / "src")
    (source / "config.json").write_bytes(b"[]")
    with pytest.raises(UserError, match=r"Base/config\.json has sha256 .* pinned; it was removed"):
        fetch("m", source, tmp_path / "dst", files=FILES)
    assert not (tmp_path / "dst/Base/config.json").exists()


def test_a_file_damaged_after_fetching_is_noticed(tmp_path: Path) -> None:
    source = source_folder(tmp_path / "src")
    fetch("m", source, tmp_path / "dst", files=FILES)
    (tmp_path / "dst/Base/Wan2.1_VAE.pth").write_bytes(b"CODEC" * 1000)
    with pytest.raises(UserError, match="delete it and fetch again"):
        fetch("m", source, tmp_path / "dst", files=FILES)


def test_an_interrupted_copy_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "_BLOCK", 1000)
    source, told = source_folder(tmp_path / "src"), []
    partial = tmp_path / "dst/Base/Wan2.1_VAE.pth.partial"
    partial.parent.mkdir(parents=True)
    partial.write_bytes(CONTENT["Wan2.1_VAE.pth"][:2000] + b"rubbish")
    fetch("m", source, tmp_path / "dst", files=(FILES[2],), progress=lambda *args: told.append(args))
    assert (tmp_path / "dst/Base/Wan2.1_VAE.pth").read_bytes() == CONTENT["Wan2.1_VAE.pth"]
    assert told[-1] == ("copy", "Base/Wan2.1_VAE.pth", 5000, 5000)
    assert not partial.exists()


def test_an_unpinned_file_is_recorded_reported_and_may_not_change_later(tmp_path: Path) -> None:
    source, files = source_folder(tmp_path / "src"), (entry("config.json", pinned=False),)
    report = fetch("m", source, tmp_path / "dst", files=files)
    assert report.not_pinned == ("Base/config.json",)
    record = json.loads((tmp_path / "dst/fetched.json").read_text())
    assert record["Base/config.json"]["sha256"] == hashlib.sha256(b"{}").hexdigest()
    (tmp_path / "dst/Base/config.json").unlink()
    (source / "config.json").write_bytes(b"other")
    with pytest.raises(UserError, match="recorded when it was first fetched"):
        fetch("m", source, tmp_path / "dst", files=files)


def test_missing_sources_unknown_models_and_full_disks_get_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match="there is no folder"):
        fetch("m", tmp_path / "nowhere", tmp_path / "dst", files=FILES)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"does not hold Base/config\.json"):
        fetch("m", tmp_path / "empty", tmp_path / "dst", files=FILES)
    with pytest.raises(UserError, match=r"nothing to fetch for 'wan-14b'; known models are taehv, wan-1\.3b"):
        fetch("wan-14b")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(UserError, match="GB free"):
        fetch("m", source_folder(tmp_path / "src"), tmp_path / "dst", files=FILES)


def fake_hub(monkeypatch: pytest.MonkeyPatch, behave: Any) -> None:
    real = fetching.require
    api = SimpleNamespace(model_info=lambda *_, **__: SimpleNamespace(sha="c" * 40))
    hub = SimpleNamespace(hf_hub_download=behave, HfApi=lambda: api)
    monkeypatch.setattr(fetching, "require", lambda m, p: hub if m == "huggingface_hub" else real(m, p))


def test_a_branch_is_resolved_to_a_commit_which_is_asked_for_and_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def download(_: str, path: str, *, revision: str, local_dir: Path, **__: Any) -> str:
        assert revision == "c" * 40
        (local_dir / path).write_bytes(CONTENT[path])
        return path

    fake_hub(monkeypatch, download)
    branch = replace(entry("config.json", pinned=False), revision="main")
    report = fetch("m", "hub", tmp_path, files=(branch,))
    assert (report.files[0].revision, report.not_pinned) == ("c" * 40, ("Base/config.json",))


def test_the_hub_is_asked_for_the_pinned_revision_and_its_commit_is_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, told = [], []

    def download(repository: str, path: str, *, revision: str, local_dir: Path, **rest: Any) -> Any:
        asked.append((repository, path, revision))
        with rest["tqdm_class"](total=len(CONTENT[path]), unit="B", name="huggingface_hub") as bar:
            (local_dir / path).write_bytes(CONTENT[path])
            bar.update(len(CONTENT[path]))
        return str(local_dir / path)

    fake_hub(monkeypatch, download)
    report = fetch("m", "hub", tmp_path, files=FILES, progress=lambda *args: told.append(args))
    assert {file.action for file in report.files} == {"downloaded"}
    assert {ask[2] for ask in asked} == {"a" * 40}
    assert report.files[1].revision == "a" * 40
    assert ("download", "Base/Wan2.1_VAE.pth", 5000, 5000) in told


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (ConnectionError("no route"), "cannot reach the hub"),
        (type("LocalEntryNotFoundError", (OSError,), {})("offline"), "cannot reach the hub"),
        (type("RevisionNotFoundError", (Exception,), {})("404"), "the manifest may be outdated"),
        (type("GatedRepoError", (Exception,), {})("403"), "accept it on the hub"),
    ],
)
def test_trouble_with_the_hub_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, sentence: str
) -> None:
    def download(*_: Any, **__: Any) -> Any:
        raise error

    fake_hub(monkeypatch, download)
    with pytest.raises(UserError, match=sentence) as caught:
        fetch("m", "hub", tmp_path, files=FILES)
    assert "\n" not in str(caught.value)


def test_the_shipped_manifest_pins_wan_and_says_what_it_cannot_pin() -> None:
    files = read_manifest("wan-1.3b")
    pinned = [f for f in files if f.sha256]
    assert all(len(f.revision) == 40 and len(f.sha256 or "") == 64 and f.bytes for f in pinned)
    assert [f.target for f in files if not f.sha256] == ["ShotStream/shotstream_merged.pt"]
    assert [f.path for f in files if f.optional] == ["diffusion_pytorch_model.safetensors"]


def test_a_manifest_with_an_unknown_key_is_refused() -> None:
    bad = {"sources": [{"repository": "r", "revision": "v", "folder": "f", "files": [{"path": "p", "sha": "x"}]}]}
    with pytest.raises(UserError, match="unknown keys \\['sha'\\]"):
        parse_manifest(bad, "m")

"""The engine store gives back what was put in, and nothing else, whatever happens to its folder."""

from __future__ import annotations

import dataclasses
import errno
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from shotstream.export.engine_store.entry import KEY, PLAN, EngineKey
from shotstream.export.engine_store.store import EngineStore
from shotstream.runtime.errors import UserError

ENGINE = EngineKey("mid_0", "w" * 64, "g" * 64, {"x": ((1, 4), (3, 4), (6, 4))}, "bfloat16", "tensorrt-rtx", "1.7.1")
OTHERS = [
    {"graph": "mid_1"},
    {"weights_hash": "v" * 64},
    {"graph_sha256": "h" * 64},
    {"profiles": {"x": ((1, 4), (3, 4), (7, 4))}},
    {"precision": "float8"},
    {"product": "tensorrt"},
    {"version": "1.7.2"},
    {"targets": ("sm_120",)},
    {"plugins": "1"},
]


def writes(data: bytes) -> Callable[[Path], Mapping[str, float]]:
    def build(plan: Path) -> Mapping[str, float]:
        plan.write_bytes(data)
        return {"seconds": 1.0, "peak_mb": 2.0}

    return build


def never(plan: Path) -> Mapping[str, float]:
    raise AssertionError("nothing had to be built")


@pytest.fixture
def store(tmp_path: Path) -> EngineStore:
    return EngineStore(tmp_path / "store")


def leftovers(store: EngineStore) -> list[str]:
    return [path.name for path in store.root.iterdir() if path.name.startswith(".part")]


def test_an_engine_is_built_once_and_loaded_as_it_was_built(store: EngineStore) -> None:
    entry, built = store.get_or_build(ENGINE, writes(b"plan"))
    assert built
    again, built = EngineStore(store.root).get_or_build(ENGINE, never)
    assert not built
    assert again == entry
    assert store.load(again) == b"plan"
    assert leftovers(store) == []


@pytest.mark.parametrize("change", OTHERS, ids=lambda change: next(iter(change)))
def test_another_key_is_another_engine(store: EngineStore, change: dict[str, Any]) -> None:
    store.get_or_build(ENGINE, writes(b"plan"))
    other = dataclasses.replace(ENGINE, **change)
    assert store.find(other) is None
    _, built = store.get_or_build(other, writes(b"other"))
    assert built
    assert len(list(store.entries())) == 2


def damage(folder: Path, how: str) -> None:
    plan, key = folder / PLAN, folder / KEY
    if how == "truncated":
        plan.write_bytes(plan.read_bytes()[:-1])
    elif how == "changed":
        plan.write_bytes(b"p1an")
    elif how == "no plan":
        plan.unlink()
    elif how == "no key":
        key.unlink()
    elif how == "garbage":
        key.write_bytes(b"{")
    elif how == "newer format":
        key.write_bytes(key.read_bytes().replace(b'"format": 1', b'"format": 2'))
    elif how == "foreign":  # an engine of something else under this one's name
        key.write_bytes(key.read_bytes().replace(b'"1.7.1"', b'"1.6.0"'))
    else:
        raise ValueError(how)


DAMAGES = {
    "truncated": "3 bytes of 4",
    "changed": "not the one that was built",
    "no plan": "has no engine.plan",
    "no key": "has no key.json",
    "garbage": "cannot be read (Input data was truncated)",
    "newer format": "has format 2, and this version reads 1",
    "foreign": "something else than its name says",
}


@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_engine_is_never_loaded(store: EngineStore, how: str) -> None:
    entry, _ = store.get_or_build(ENGINE, writes(b"plan"))
    damage(entry.folder, how)
    with pytest.raises(UserError, match=f"is broken: .*{re.escape(DAMAGES[how])}; remove it with: shotstream export"):
        store.load(entry)
    assert [sentence for sentence in store.verify() if DAMAGES[how] in sentence]
    if how != "changed":  # whose size is right: only a look at its content tells
        assert store.get_or_build(ENGINE, writes(b"plan"))[1]
        assert store.verify() == []
        damage(entry.folder, how)
    assert store.prune(lambda entry: False) == [entry.folder.name]
    assert store.get_or_build(ENGINE, writes(b"plan"))[1]
    assert store.verify() == []


@pytest.mark.parametrize("where", ["build", "flush", "rename"])
def test_a_full_disk_leaves_the_store_as_it_was(
    store: EngineStore, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")

    store.get_or_build(dataclasses.replace(ENGINE, graph="head"), writes(b"head"))
    with monkeypatch.context() as patch:
        if where == "flush":
            patch.setattr(os, "fsync", full)
        elif where == "rename":
            patch.setattr(Path, "rename", full)
        with pytest.raises(UserError, match="No space left on device; free some space or choose another --store"):
            store.get_or_build(ENGINE, full if where == "build" else writes(b"plan"))
    assert store.find(ENGINE) is None
    assert leftovers(store) == []
    assert store.verify() == []
    assert store.get_or_build(ENGINE, writes(b"plan"))[1]


BUILDER = """
import sys, time
from pathlib import Path
from test_store import ENGINE, EngineStore
def build(plan):
    plan.write_bytes(b"half")
    print("begun", flush=True)
    time.sleep(60)
EngineStore(Path(sys.argv[1])).get_or_build(ENGINE, build)
"""


def test_a_builder_killed_midway_leaves_nothing_that_counts(store: EngineStore) -> None:
    paths = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    child = subprocess.Popen(
        [sys.executable, "-c", BUILDER, str(store.root)],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
    )
    assert child.stdout is not None
    assert child.stdout.readline() == b"begun\n"
    assert store.prune(lambda entry: True) == []  # it lives, so its work is left alone
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()
    assert store.find(ENGINE) is None
    assert store.verify() == []
    assert len(leftovers(store)) == 1
    _, built = store.get_or_build(ENGINE, writes(b"plan"))
    assert built
    assert leftovers(store) == []


def test_of_two_builders_one_waits_and_takes_the_others_engine(store: EngineStore) -> None:
    begun, waiting = threading.Event(), threading.Event()

    def slowly(plan: Path) -> Mapping[str, float]:
        begun.set()
        assert waiting.wait(10)
        return writes(b"plan")(plan)

    first = threading.Thread(target=store.get_or_build, args=(ENGINE, slowly))
    first.start()
    assert begun.wait(10)
    entry, built = EngineStore(store.root).get_or_build(ENGINE, never, waiting.set)
    first.join()
    assert not built
    assert store.load(entry) == b"plan"


def test_prune_removes_what_is_unwanted_broken_or_left_behind_only(store: EngineStore) -> None:
    names = ("head", "mid_0", "tail")
    made = {n: store.get_or_build(dataclasses.replace(ENGINE, graph=n), writes(b"plan"))[0] for n in names}
    damage(made["tail"].folder, "truncated")
    part = store.root / f".part-{ENGINE.folder}-abc"
    part.mkdir()
    strange = store.root / "photos"
    strange.mkdir()
    gone = store.prune(lambda entry: entry.key.graph == "head")
    assert sorted(gone) == sorted([made["head"].folder.name, made["tail"].folder.name, part.name])
    assert strange.is_dir()
    assert [entry.key.graph for entry, _ in store.entries() if entry] == ["mid_0"]


def test_an_engine_that_was_removed_meanwhile_is_a_sentence(store: EngineStore) -> None:
    entry, _ = store.get_or_build(ENGINE, writes(b"plan"))
    store.remove(entry.folder.name)
    with pytest.raises(UserError, match="was removed meanwhile; build it again"):
        store.load(entry)


def test_loading_counts_as_use(store: EngineStore) -> None:
    entry, _ = store.get_or_build(ENGINE, writes(b"plan"))
    os.utime(entry.folder / KEY, (1, 1))
    store.load(entry)
    assert entry.used > time.time() - 60


def test_an_engine_for_a_gpu_is_any_that_was_built_for_it(store: EngineStore) -> None:
    several = dataclasses.replace(ENGINE, targets=("sm_89", "sm_120"))
    store.get_or_build(several, writes(b"plan"))
    assert store.best(ENGINE, "sm_120").key == several
    with pytest.raises(UserError, match="but with other targets; build this one"):
        store.best(ENGINE, "sm_86")
    store.get_or_build(ENGINE, writes(b"portable"))
    assert store.best(ENGINE, "sm_86").key == ENGINE


def test_what_is_there_instead_is_said(store: EngineStore) -> None:
    with pytest.raises(UserError, match="has no engine of mid_0 for tensorrt-rtx; build it with: shotstream export"):
        store.best(ENGINE, "sm_120")
    store.get_or_build(ENGINE, writes(b"plan"))
    with pytest.raises(UserError, match="with other weights hash, version; build"):
        store.best(dataclasses.replace(ENGINE, weights_hash="v", version="2"), "sm_120")


def test_a_store_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UserError, match="the engine store cannot use"):
        EngineStore(tmp_path / "file" / "store")


def test_a_copied_store_is_as_good(store: EngineStore, tmp_path: Path) -> None:
    store.get_or_build(ENGINE, writes(b"plan"))
    shutil.copytree(store.root, tmp_path / "copy")
    copy = EngineStore(tmp_path / "copy")
    entry, _ = copy.get_or_build(ENGINE, never)
    assert copy.load(entry) == b"plan"

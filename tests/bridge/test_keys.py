"""CURVE: with the right keys one is in, with others one is out and is told; secrets stay secret."""

from __future__ import annotations

import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq

from shotstream.bridge import Client
from shotstream.bridge.model.options import MockOptions, WorkerOptions
from shotstream.bridge.server.gateway import Gateway
from shotstream.bridge.server.keys import make_client_keys, make_server_keys, read_client_keys, secure_with
from shotstream.bridge.server.start import check_bind, make_gateway
from shotstream.runtime.errors import UserError

pytestmark = pytest.mark.skipif(not zmq.has("curve"), reason="this libzmq was built without CURVE")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_server_keys(tmp_path / "keys")
    make_client_keys(tmp_path / "keys", "anna")
    return tmp_path / "keys"


@pytest.fixture
def server(folder: Path) -> Iterator[Gateway]:
    mock = MockOptions(64, 48, chunk_s=0.01, load_s=0.0)
    gateway = make_gateway(WorkerOptions("mock", mock=mock), "tcp://127.0.0.1:0", curve_keys=folder)
    thread = threading.Thread(target=gateway.run)
    thread.start()
    yield gateway
    gateway.stop()
    thread.join(30)


def test_who_has_keys_is_served(server: Gateway, folder: Path) -> None:
    pair = read_client_keys(folder / "server.key", folder / "clients" / "anna.key_secret")
    with Client(server.endpoint, curve=(pair.server_public, pair.public, pair.secret)) as client:
        film = client.open(seed=1)
        film.prompt("a fox", at="next_chunk", chunks=1)
        assert sum(1 for _, _ in zip(range(9), film.frames(timeout_s=30), strict=False)) == 9


def test_who_is_not_on_the_list_is_told_so(server: Gateway, folder: Path, tmp_path: Path) -> None:
    other = make_client_keys(tmp_path / "elsewhere", "mallory")
    pair = read_client_keys(folder / "server.key", other)
    curve = (pair.server_public, pair.public, pair.secret)
    with Client(server.endpoint, curve=curve) as client, pytest.raises(UserError):
        client.wait(lambda: client.state == "welcomed", 10)


def test_secret_files_are_for_their_owner_alone(folder: Path) -> None:
    secrets = [*folder.glob("*.key_secret"), *folder.glob("clients/*.key_secret")]
    assert len(secrets) == 2
    assert {stat.S_IMODE(file.stat().st_mode) for file in secrets} == {0o600}


def test_a_secret_that_others_can_read_is_refused(folder: Path) -> None:
    (folder / "server.key_secret").chmod(0o644)
    with pytest.raises(UserError, match="chmod 600"):
        secure_with(folder)


def test_keys_that_are_missing_are_named_with_the_command_that_makes_them(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="shotstream keys"):
        secure_with(tmp_path)
    make_server_keys(tmp_path)
    with pytest.raises(UserError, match="nobody may come"):
        secure_with(tmp_path)


def test_keys_are_not_overwritten(folder: Path) -> None:
    before = (folder / "server.key_secret").read_bytes()
    make_server_keys(folder)
    assert (folder / "server.key_secret").read_bytes() == before
    with pytest.raises(UserError, match="exists already"):
        make_client_keys(folder, "anna")


@pytest.mark.parametrize("bind", ["tcp://0.0.0.0:5570", "tcp://*:5570", "tcp://192.168.1.4:5570"])
def test_beyond_this_machine_only_with_keys(bind: str) -> None:
    with pytest.raises(UserError, match="--curve-keys"):
        check_bind(bind, secure=False)
    check_bind(bind, secure=True)

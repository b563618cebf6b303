"""CURVE: keys on disk, and a socket that lets nobody in without one.

A folder holds ``server.key`` (public), ``server.key_secret``, and ``clients/NAME.key``: the public keys of those who
may come. Secret files are readable by their owner alone.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import zmq
import zmq.auth
from zmq.auth.thread import ThreadAuthenticator

from shotstream.runtime.errors import UserError

DOMAIN = "shotstream"
"""The same name on the socket and in the authenticator: with another one no key is ever looked at."""


@dataclass(frozen=True)
class KeyPair:
    """A client's keys and the server's public one, as `shotstream.bridge.Client` takes them."""

    server_public: bytes
    public: bytes
    secret: bytes


def make_server_keys(folder: Path) -> Path:
    """The server's key pair in ``folder``; an existing one stays. Returns the file of the public key."""
    _folder(folder)
    public = folder / "server.key"
    if not public.exists():
        _private(Path(zmq.auth.create_certificates(folder, "server")[1]))
    return public


def make_client_keys(folder: Path, name: str) -> Path:
    """A key pair for client ``name``: the public part into ``folder/clients``, where it is let in; the secret part
    beside it as ``NAME.key_secret``, to be carried to the client. Returns the secret file."""
    if not name or not all(c.isalnum() or c in "-_" for c in name):
        raise UserError(f"a client's name has letters, digits, - and _ only, not {name!r}")
    clients = _folder(folder / "clients")
    if (clients / f"{name}.key").exists():
        raise UserError(f"{clients / name}.key exists already; remove it first, or choose another name")
    secret = Path(zmq.auth.create_certificates(clients, name)[1])
    _private(secret)
    return secret


def read_client_keys(server_public: Path, secret: Path) -> KeyPair:
    """What a client needs, from the server's public file and its own secret one. UserError if they cannot be read."""
    try:
        server, _ = zmq.auth.load_certificate(server_public)
        public, private = zmq.auth.load_certificate(secret)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read the keys: {error}") from None
    if private is None:
        raise UserError(f"{secret} holds no secret key; the client needs its NAME.key_secret")
    return KeyPair(server, public, private)


def secure_with(folder: Path) -> Callable[[zmq.Socket[bytes]], Callable[[], None]]:
    """How to make a server's socket demand keys. The function returned is to be called with the socket before it binds,
    and returns what ends it. Raises UserError if the folder does not hold keys or they are not private."""
    secret = folder / "server.key_secret"
    if not secret.is_file():
        raise UserError(f"there is no {secret}; make keys with: shotstream keys {folder} --client NAME")
    for file in [secret, *folder.glob("clients/*.key_secret")]:
        if os.name == "posix" and file.stat().st_mode & 0o077:
            raise UserError(f"{file} can be read by others; run: chmod 600 {file}")
    if not any(folder.glob("clients/*.key")):
        raise UserError(
            f"nobody may come: {folder / 'clients'} holds no keys; run: shotstream keys {folder} --client NAME"
        )
    public, private = zmq.auth.load_certificate(secret)

    def secure(socket: zmq.Socket[bytes]) -> Callable[[], None]:
        authenticator = ThreadAuthenticator(socket.context)
        authenticator.start()
        authenticator.configure_curve(domain=DOMAIN, location=str(folder / "clients"))
        socket.curve_publickey, socket.curve_secretkey = public, private
        socket.curve_server = True
        socket.zap_domain = DOMAIN.encode()
        return authenticator.stop

    return secure


def _folder(folder: Path) -> Path:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make {folder}: {error.strerror}") from None
    return folder


def _private(file: Path) -> None:
    file.chmod(0o600)  # the library leaves it readable by all

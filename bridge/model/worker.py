"""The model process: takes orders over a socket, makes chunks, and never sees a client.

One thread reads orders, so that `Stop` and the end of the bridge are noticed while a chunk is being made; the main
thread does them in order. The bridge starts it as ``python -m shotstream.bridge.model.worker ADDRESS JSON``.
"""

from __future__ import annotations

import hashlib
import io
import logging
import os
import queue
import shutil
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import zmq
from PIL import Image

from shotstream.bridge.frame_store import FrameStore
from shotstream.bridge.model import orders
from shotstream.bridge.model.mock import MockStudio
from shotstream.bridge.model.options import WorkerOptions
from shotstream.bridge.model.studio import Film, Piece, Stopped, Studio
from shotstream.bridge.protocol.messages import Encoding
from shotstream.runtime.errors import CaptionTooLong, UserError

log = logging.getLogger(__name__)


def make_studio(options: WorkerOptions) -> Studio:
    """The studio that is asked for, not prepared yet."""
    if options.model == "mock":
        return MockStudio(options.mock)
    from shotstream.bridge.model.real import RuntimeStudio  # loads torch, which the mock does without

    return RuntimeStudio(options)


class Worker:
    """Does orders one by one with a studio; `run` returns when it is told to quit."""

    def __init__(self, studio: Studio, send: Any, *, digests: bool = False) -> None:
        self.studio, self._send, self._digests = studio, send, digests
        self._captions: dict[int, str] = {}
        """What every film's last chunk showed."""
        self._unseen: set[int] = set()
        """Films whose shot was given up before it had a frame: it must not go on by itself."""
        self.films: dict[int, Film] = {}
        self.store: FrameStore | None = None
        self._stopped = 0
        """The newest chunk that is to be given up: there is never more than one to be made."""
        self._orders: queue.SimpleQueue[orders.Order] = queue.SimpleQueue()

    def put(self, order: orders.Order) -> None:
        """From the reading thread: queue an order, or heed a stop at once."""
        if isinstance(order, orders.Stop):
            self._stopped = order.ticket
        else:
            self._orders.put(order)

    def run(self) -> None:
        """Load, then work until `Quit`."""
        try:
            facts = self.studio.prepare(lambda state, step: self._send(orders.Loading(state, step)))
        except UserError as error:
            self._send(orders.Broken(str(error)))
            return
        self._send(orders.Ready(facts))
        while not isinstance(order := self._orders.get(), orders.Quit):
            self._do(order)
        for film in self.films.values():
            film.close()
        self.studio.close()

    def _do(self, order: orders.Order) -> None:
        match order:
            case orders.UseStore():
                self.store = FrameStore(Path(order.path), order.slots, order.slot_bytes)
            case orders.OpenFilm():
                self._open(order)
            case orders.BranchFilm():
                self._branch(order)
            case orders.CloseFilm():
                if film := self.films.pop(order.film, None):
                    film.close()
                self._captions.pop(order.film, None)
                self._unseen.discard(order.film)
            case orders.Make():
                self._make(order)

    def _open(self, order: orders.OpenFilm) -> None:
        try:
            self.films[order.film] = self.studio.open(order.seed, order.global_caption, order.saved)
        except UserError as error:
            self._send(orders.FilmFailed(order.film, "invalid_argument", str(error)))
        except (MemoryError, RuntimeError) as error:
            self._send(orders.FilmFailed(order.film, "out_of_memory", _first_line(error)))
        else:
            self._send(orders.FilmOpen(order.film))

    def _branch(self, order: orders.BranchFilm) -> None:
        try:
            if order.of in self.films:
                self.films[order.film] = self.films[order.of].branch()
        except (UserError, MemoryError, RuntimeError) as error:
            self._send(orders.FilmFailed(order.film, "out_of_memory", _first_line(error)))

    def _make(self, order: orders.Make) -> None:
        begun = time.perf_counter()
        film = self.films.get(order.film)
        if film is None or (order.shot is None and order.film in self._unseen):
            self._send(orders.NotMade(order.film, order.ticket, "idle", "no shot is running"))
            return
        self._unseen.discard(order.film)
        try:
            if order.shot is not None:
                kept = film.keep()
                film.begin(order.shot)
                self._send(orders.Kept(order.film, *kept))
            elif order.steer:
                film.steer(order.steer)
            piece = film.make(lambda: order.ticket == self._stopped)
        except Stopped:
            self._undo(order, film)
            self._send(orders.NotMade(order.film, order.ticket, "stopped"))
        except CaptionTooLong as error:
            self._send(orders.NotMade(order.film, order.ticket, "text_too_long", str(error)))
        except UserError as error:
            self._send(orders.NotMade(order.film, order.ticket, "invalid_argument", str(error)))
        except MemoryError as error:
            self._send(orders.NotMade(order.film, order.ticket, "out_of_memory", _first_line(error)))
        except (ValueError, TypeError, LookupError, ArithmeticError) as error:
            # A defect that concerns one shot: the other films go on. After anything else, as an error of the device,
            # nothing here can be relied on; this process ends and is started again.
            log.exception("a chunk could not be made")
            self._send(orders.NotMade(order.film, order.ticket, "internal", _first_line(error)))
        else:
            if piece is None:
                self._send(orders.NotMade(order.film, order.ticket, "idle"))
            else:
                self._deliver(order, piece, begun)
                self._look_ahead(order.film, film, piece)

    def _undo(self, order: orders.Make, film: Film) -> None:
        """A chunk that was given up leaves no trace of what it was to begin with."""
        if order.shot is not None:
            self._unseen.add(order.film)
        elif order.steer:
            film.steer(self._captions[order.film])

    def _deliver(self, order: orders.Make, piece: Piece, begun: float) -> None:
        assert self.store is not None, "the store comes before the first order to make"
        sizes = write_frames(piece.frames, order.enc, order.quality, self.store.view(order.slot))
        self._captions[order.film] = piece.caption
        digest = digest_of(piece.frames) if self._digests else ""
        self._send(
            orders.Made(
                order.film, order.ticket, order.slot, piece.shot, piece.chunk, piece.caption, sizes, piece.last,
                1000 * (time.perf_counter() - begun), digest,
            )
        )  # fmt: skip

    def _look_ahead(self, number: int, film: Film, piece: Piece) -> None:
        """Use the time before the next order: a player is busy with the chunk that has just left."""
        if piece.last:
            self._send(orders.Kept(number, *film.keep()))
        elif self._orders.empty():
            film.settle()


def digest_of(frames: npt.NDArray[np.uint8]) -> str:
    """SHA-256 (hex) of a chunk's frames, uint8 [F, H, W, 3]."""
    return hashlib.sha256(np.ascontiguousarray(frames).data).hexdigest()


def write_frames(frames: npt.NDArray[np.uint8], enc: Encoding, quality: int, into: npt.NDArray[np.uint8]) -> list[int]:
    """Encode frames [F, H, W, 3] one behind the other into ``into``; returns the bytes of each."""
    if enc == "none":
        return [0] * len(frames)
    if enc == "jpeg":
        sizes, at = [], 0
        for frame in frames:
            file = io.BytesIO()
            Image.fromarray(frame).save(file, "JPEG", quality=quality)
            data = np.frombuffer(file.getbuffer(), np.uint8)
            into[at : at + len(data)] = data
            at += len(data)
            sizes.append(len(data))
        return sizes
    count, height, width, _ = frames.shape
    depth = 3 if enc == "rgb24" else 4
    target = into[: count * height * width * depth].reshape(count, height, width, depth)
    if enc == "rgb24":
        target[:] = frames
    else:
        target[..., 3] = 255
        target[..., :3] = frames if enc == "rgba32" else frames[..., ::-1]
    return [height * width * depth] * count


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def main(address: str, bridge: int, options_json: str) -> None:
    """Connect to the bridge, process ``bridge``, and work until it says quit, or is gone."""
    for number in (signal.SIGINT, signal.SIGTERM):  # often sent to the whole group; the bridge says when to leave
        signal.signal(number, signal.SIG_IGN)
    logging.basicConfig(level=logging.WARNING, format="%(name)s: %(message)s")
    options = msgspec.json.decode(options_json, type=WorkerOptions)
    context = zmq.Context()
    # Sockets are not for two threads: results go through a pair of their own to the thread that owns the connection.
    inside = context.socket(zmq.PAIR)
    inside.bind("inproc://results")
    outside = context.socket(zmq.PAIR)
    outside.connect("inproc://results")
    worker = Worker(make_studio(options), lambda result: outside.send(orders.encode(result)), digests=options.digests)
    thread = threading.Thread(target=_carry, args=(context, address, bridge, inside, worker), daemon=True)
    thread.start()
    try:
        worker.run()
    finally:
        outside.send(b"")
        thread.join(5)


def _carry(context: zmq.Context, address: str, bridge: int, inside: zmq.Socket, worker: Worker) -> None:
    """The reading thread: orders in, results out, and out of here when the bridge is no more."""
    link = context.socket(zmq.PAIR)
    link.linger = 500
    link.connect(address)
    poller = zmq.Poller()
    poller.register(link, zmq.POLLIN)
    poller.register(inside, zmq.POLLIN)
    while True:
        ready = dict(poller.poll(500))
        if link in ready:
            worker.put(orders.decode_order(link.recv()))
        if inside in ready:
            result = inside.recv()
            if not result:
                link.close()
                return
            link.send(result)
        if os.getppid() != bridge:
            log.warning("the bridge is gone; the model process ends")
            if worker.store is not None:
                worker.store.unlink()
            shutil.rmtree(Path(address.removeprefix("ipc://")).parent, ignore_errors=True)  # made for this socket only
            os._exit(1)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])

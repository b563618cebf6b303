"""What can be asked of a film, once for both clients: each verb makes one message and hands it to `_ask`. No sockets.

All verbs return at once. What a request breaks by itself (too long a text, a word that the protocol does not know) is a
`UserError` at the call; whatever becomes of it later stands on the receipt.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeAlias, TypeVar

from shotstream.bridge.client.film import FilmCore
from shotstream.bridge.client.receipts import Receipt
from shotstream.bridge.protocol import messages as m
from shotstream.runtime.errors import UserError

R = TypeVar("R")
Callback: TypeAlias = Callable[[Receipt], None] | None
CastSheet: TypeAlias = Mapping[str, str] | Sequence[m.Cast]
"""Descriptions by key, or the cast in full."""

_DRAFT = 1
"""Stands for a request's number, which the film gives when it is asked."""


def cast_list(cast: CastSheet) -> list[m.Cast]:
    """The cast as the protocol has it. Raises `UserError` for anything else."""
    if isinstance(cast, Mapping):
        return [m.Cast(key=key, description=description) for key, description in cast.items()]
    if any(not isinstance(member, m.Cast) for member in cast):
        raise UserError("cast is a mapping of key to description, or a list of Cast")
    return list(cast)


def number_of(request: int | Receipt) -> int:
    """A request's number, given it or its receipt."""
    return request if isinstance(request, int) else request.id


@dataclass(frozen=True)
class FilmStatistics:
    """How a film runs here. Counts are over the film's whole life."""

    received: int
    """Frames that came."""
    presented: int
    skipped: int
    """Passed over because the application looks less often than frames come."""
    dropped: int
    """Flushed, announced as missing, or missing without a word."""
    duplicates: int
    broken: int
    """Frames whose payload did not fit their header; they count as dropped too."""
    late: int
    """How often nothing was there to show."""
    frozen_s: float
    lead_ms: float
    """Film that lies ready."""
    credit: int
    """Frames that may still be sent."""
    waiting: int
    """Requests without an answer."""
    resumed: int
    reopened: int
    transport_ms: float | None
    """How long the shown frame took from the server's send queue to here, as far as the clocks are known."""


class Verbs(ABC, Generic[R]):
    """Requests about one film; ``R`` is the receipt that they return."""

    _core: FilmCore

    @abstractmethod
    def _ask(self, message: m.SessionRequest, on_change: Callback) -> R: ...

    def event(
        self, kind: str, *, actor: str = "", action: str = "", target: str = "",
        params: Mapping[str, m.Scalar] | None = None, tags: Sequence[str] = (), at: m.Urgency = "auto",
        coalesce: str = "", on_change: Callback = None,
    ) -> R:  # fmt: skip
        """Something happened in the game ("Story.Act1.DoorOpened"); the director finds the words. Of events with the
        same ``coalesce`` that wait, the last one wins."""
        return self._ask(
            m.Event(
                id=_DRAFT, session="", kind=kind, actor=actor, action=action, target=target, params=dict(params or {}),
                tags=list(tags), at=at, ts=time.time() * 1000, coalesce=coalesce,
            ),
            on_change,
        )  # fmt: skip

    def prompt(self, text: str, *, at: m.Urgency = "auto", chunks: int = 0, on_change: Callback = None) -> R:
        """A shot caption, word for word. ``chunks``: the shot's length, 0 for the model's usual one."""
        return self._ask(m.Prompt(id=_DRAFT, session="", text=text, at=at, chunks=chunks), on_change)

    def steer(self, text: str, *, on_change: Callback = None) -> R:
        """Another caption for the running shot, from the next chunk on, without a cut."""
        return self._ask(m.Steer(id=_DRAFT, session="", text=text), on_change)

    def cut(
        self, caption: str = "", *, size: m.Size | m.Empty = "", subject: str = "", flush: bool = False,
        chunks: int = 0, on_change: Callback = None,
    ) -> R:  # fmt: skip
        """A new shot behind the chunk in the making, or at once with ``flush`` (what is queued is dropped then)."""
        return self._ask(
            m.Cut(id=_DRAFT, session="", caption=caption, size=size, subject=subject, flush=flush, chunks=chunks),
            on_change,
        )

    def scene(
        self, global_caption: str = "", *, cast: CastSheet = (), style: str = "", place: str = "", time: str = "",
        forget: bool = False, on_change: Callback = None,
    ) -> R:  # fmt: skip
        """New circumstances from the next shot on. ``forget``: earlier shots are not remembered there."""
        return self._ask(
            m.Scene(
                id=_DRAFT, session="", global_caption=global_caption, cast=cast_list(cast), style=style, place=place,
                time=time, forget=forget,
            ),
            on_change,
        )  # fmt: skip

    def choices(
        self, options: Mapping[str, str] | Sequence[m.Option], *, deadline_ms: int = 0, default: str = "",
        on_change: Callback = None,
    ) -> R:  # fmt: skip
        """Ways to go on, as captions by key or as `Option`; their first chunks are made ahead (`on_choice_ready`).
        Give the receipt to `commit`. ``default`` is taken after ``deadline_ms``, if both are given."""
        if isinstance(options, Mapping):
            options = [m.Option(key=key, caption=caption) for key, caption in options.items()]
        return self._ask(
            m.Choices(id=_DRAFT, session="", options=list(options), deadline_ms=deadline_ms, default=default), on_change
        )

    def commit(self, choices: int | Receipt, key: str, *, on_change: Callback = None) -> R:
        """Take one of the ways that ``choices`` announced."""
        return self._ask(m.Commit(id=_DRAFT, session="", choices=number_of(choices), key=key), on_change)

    def cancel(self, request: int | Receipt, *, on_change: Callback = None) -> R:
        """Take a request back unless it has been applied."""
        return self._ask(m.Cancel(id=_DRAFT, session="", ref=number_of(request)), on_change)

    def pause(self, *, on_change: Callback = None) -> R:
        """Make nothing until `play`. What was sent plays on."""
        return self._ask(m.Pause(id=_DRAFT, session=""), on_change)

    def play(self, *, on_change: Callback = None) -> R:
        """Go on after `pause`."""
        return self._ask(m.Play(id=_DRAFT, session=""), on_change)

    def snapshot(self, name: str = "", *, on_change: Callback = None) -> R:
        """Keep the film as it is at the coming shot boundary; the receipt's ``snap`` names it once it is made."""
        return self._ask(m.Snapshot(id=_DRAFT, session="", name=name), on_change)

    def restore(self, snap: str, *, on_change: Callback = None) -> R:
        """Go back to a snapshot of this film."""
        return self._ask(m.Restore(id=_DRAFT, session="", snap=snap), on_change)

    def close(self, *, on_change: Callback = None) -> R:
        """End the film; what has come can still be shown."""
        return self._ask(m.CloseSession(id=_DRAFT, session=""), on_change)

    # --- what can be known --------------------------------------------------------------------------------------------
    @property
    def state(self) -> str:
        """``opening``, ``open``, ``detached``, ``resuming``, ``closed`` or ``lost``."""
        return self._core.state

    @property
    def error(self) -> str:
        """Why the film is lost or not open yet, as a sentence; "" where nothing is wrong."""
        return f"{self._core.error[1]} ({self._core.error[0]})" if self._core.error else ""

    @property
    def info(self) -> m.SessionOpened | None:
        """Size, rate, seed, chunk lengths and so on, once the film is open."""
        return self._core.opened

    @property
    def queued(self) -> int:
        """Frames that came and were not shown."""
        return self._core.player.queued

    @property
    def holding(self) -> bool:
        """The shown frame stands longer than its time, for whatever reason."""
        return self._core.player.holding

    @property
    def held_s(self) -> float:
        """For how long, in seconds."""
        return self._core.player.held_s

    @property
    def showing(self) -> m.ShotBegin | None:
        """The shot to which the shown frame belongs: its caption, size and cause, when they are seen."""
        shown = self._core.player.shown
        return self._core.shots.get(shown.shot) if shown is not None else None

    def catch_up(self, keep_ms: float = 0.0) -> int:
        """Drop queued frames until ``keep_ms`` of film are left, and show the next at once; how many were dropped."""
        return self._core.player.catch_up(keep_ms)

    def _statistics(self, offset_us: float | None) -> FilmStatistics:
        core, player = self._core, self._core.player
        shown, transport = player.shown, None
        if shown is not None and shown.header.ts and offset_us is not None:
            transport = (shown.received_at * 1e6 + offset_us - shown.header.ts) / 1000
        return FilmStatistics(
            received=core.received, presented=player.presented, skipped=player.skipped, dropped=player.dropped,
            duplicates=core.duplicates, broken=core.broken, late=player.late, frozen_s=player.frozen_s,
            lead_ms=player.lead_ms, credit=max(0, player.upto - player.next_seq), waiting=core.waiting,
            resumed=core.resumed, reopened=core.reopened, transport_ms=transport,
        )  # fmt: skip

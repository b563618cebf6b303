"""What each request about a session does. Pure; every function answers at once, by acknowledging or by refusing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from shotstream.bridge.model.orders import NewShot
from shotstream.bridge.protocol import messages as m
from shotstream.bridge.server.choosing import Branch, Offer
from shotstream.bridge.server.plan import ShotOrder, SteerOrder
from shotstream.bridge.server.session import Boundary, Session
from shotstream.bridge.server.words import Worded
from shotstream.runtime.errors import UserError


class Refused(Exception):
    """A request that cannot be done, with the protocol's code for why."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code


def handle(session: Session, message: Any, now: float) -> None:
    """Do a request that is new to the session."""
    try:
        _HANDLERS[type(message)](session, message, now)
    except Refused as refusal:
        session.reject(message.id, refusal.code, str(refusal))
    except UserError as error:
        session.reject(message.id, "rejected_content", str(error))


def _event(session: Session, message: m.Event, now: float) -> None:
    superseded = session.plan.coalesce(message.coalesce)
    worded, after = session.words.event(session.plan.state(session.shown_words), message)
    session.supersede(superseded)
    _place(session, message.id, worded, after, now, coalesce=message.coalesce)


def _prompt(session: Session, message: m.Prompt, now: float) -> None:
    _check_text(session, message.text)
    _check_chunks(session, message.chunks)
    worded, after = session.words.prompt(session.plan.state(session.shown_words), message)
    _place(session, message.id, worded, after, now)


def _cut(session: Session, message: m.Cut, now: float) -> None:
    _check_text(session, message.caption, may_be_empty=True)
    _check_chunks(session, message.chunks)
    worded, after = session.words.cut(session.plan.state(session.shown_words), message)
    _place(session, message.id, worded, after, now)


def _place(session: Session, request: int, worded: Worded, after: Any, now: float, *, coalesce: str = "") -> None:
    """Put a worded shot where its urgency says."""
    shot = NewShot(worded.caption, worded.global_caption, worded.chunks, worded.forget)
    before = session.plan.state(session.shown_words)
    flush = worded.at == "now"
    order = ShotOrder(request, now, shot, worded.size, before, after, flush, coalesce)
    running = session.running is not None or session.beginning
    if worded.at == "next_shot" and (running or session.plan.cut is not None):
        session.supersede(session.plan.put_later(order))
        session.ack(request, "queued")
        return
    session.supersede(session.plan.put_cut(order))
    session.ack(request)
    if flush:
        session.haste.pressed(now)
        if not session.haste.hasty(now):  # or somebody who presses all the time would never see a chunk finished
            session.give_up_making()


def _steer(session: Session, message: m.Steer, now: float) -> None:
    _check_text(session, message.text)
    if session.running is None:
        raise Refused("invalid_argument", "no shot is running that could be steered; send a prompt")
    session.supersede(session.plan.put_steer(SteerOrder(message.id, now, message.text)))
    session.ack(message.id)


def _scene(session: Session, message: m.Scene, now: float) -> None:
    _check_text(session, message.global_caption, may_be_empty=True)
    state = session.plan.state(session.shown_words)
    caption, after = session.words.scene(state, message)
    session.set_scene(caption, after, forget=message.forget)
    session.ack(message.id, "queued")


def _choices(session: Session, message: m.Choices, now: float) -> None:
    keys = [option.key for option in message.options]
    if len(set(keys)) < len(keys):
        raise Refused("invalid_argument", "two options have the same key")
    if message.default and message.default not in keys:
        raise Refused("invalid_argument", f"the default {message.default!r} is none of the options {', '.join(keys)}")
    before = session.plan.state(session.shown_words)
    branches = {}
    for option in message.options:
        worded, after = session.words.option(before, option)
        shot = NewShot(worded.caption, worded.global_caption, worded.chunks, worded.forget)
        order = ShotOrder(0, now, shot, worded.size, before, after, flush=True)
        branches[option.key] = Branch(option.key, order)
    timed = message.deadline_ms and message.default
    deadline = now + message.deadline_ms / 1000 if timed else None
    session.choosing.open(Offer(message.id, branches, deadline, message.default))
    session.ack(message.id)


def _commit(session: Session, message: m.Commit, now: float) -> None:
    offer = session.choosing.offer
    if offer is None or offer.request != message.choices:
        raise Refused("invalid_argument", f"there is no open choice {message.choices}")
    if offer.committed is not None:
        raise Refused("invalid_argument", "this choice is made already")
    branch = offer.branches.get(message.key)
    if branch is None:
        raise Refused("invalid_argument", f"{message.key!r} is none of the options {', '.join(offer.branches)}")
    session.choosing.commit(branch, message.id, now)


def _cancel(session: Session, message: m.Cancel, now: float) -> None:
    if not (
        session.plan.cancel(message.ref) or session.choosing.cancel(message.ref) or session.cancel_making(message.ref)
    ):
        raise Refused("invalid_argument", f"request {message.ref} does not wait: it was applied, refused or never made")
    session.ack(message.id)
    session.reject(message.ref, "cancelled", "taken back")


def _pause(session: Session, message: m.Pause, now: float) -> None:
    session.paused = True
    session.ack(message.id)


def _play(session: Session, message: m.Play, now: float) -> None:
    session.paused = False
    session.ack(message.id)


def _snapshot(session: Session, message: m.Snapshot, now: float) -> None:
    if session.running is None and not session.beginning:
        session.ack(message.id)
        session.make_snapshot(message)
    else:
        most = session.desk.limits.snapshots
        if len(session.waiting_snapshots) >= most:
            raise Refused("queue_full", f"{most} snapshots wait for the coming shot boundary already")
        session.ack(message.id, "queued")
        session.waiting_snapshots.append(message)


def _restore(session: Session, message: m.Restore, now: float) -> None:
    boundary = _snap(session, message.snap)
    session.ack(message.id)
    session.replace_film(boundary)
    done = m.Restored(
        re=message.id, session=session.name, snap=message.snap, seq=session.next_seq, epoch=session.epoch + 1
    )
    session.answer(message.id, done)


def _snap(session: Session, name: str) -> Boundary:
    if name not in session.snapshots:
        known = ", ".join(session.snapshots) or "none"
        raise Refused("snapshot_missing", f"there is no snapshot {name!r}; there is {known}")
    return session.snapshots[name]


def fork_boundary(session: Session, message: m.Fork) -> Boundary:
    """Where a fork starts. Raises Refused."""
    return _snap(session, message.snap) if message.snap else session.boundary


def _check_text(session: Session, text: str, *, may_be_empty: bool = False) -> None:
    limit = session.desk.limits.text_bytes
    if len(text.encode()) > limit:
        raise Refused("text_too_long", f"the text has {len(text.encode())} bytes; {limit} are allowed")
    if not text.strip() and not may_be_empty:
        raise Refused("invalid_argument", "the caption of a shot is empty; say what it shows")


def _check_chunks(session: Session, chunks: int) -> None:
    most = session.desk.facts.max_shot_chunks
    if chunks > most:
        raise Refused("invalid_argument", f"a shot has at most {most} chunks, not {chunks}")


_HANDLERS: dict[type, Callable[[Session, Any, float], None]] = {
    m.Event: _event,
    m.Prompt: _prompt,
    m.Cut: _cut,
    m.Steer: _steer,
    m.Scene: _scene,
    m.Choices: _choices,
    m.Commit: _commit,
    m.Cancel: _cancel,
    m.Pause: _pause,
    m.Play: _play,
    m.Snapshot: _snapshot,
    m.Restore: _restore,
}

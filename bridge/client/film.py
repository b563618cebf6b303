"""One film as the protocol sees it: opening, requests, frames, credit, resuming. Pure: no sockets, no clock.

`ClientCore` feeds it messages and asks it what to send; `Film` and `AsyncFilm` are its faces for applications.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

from msgspec.structs import replace

from shotstream.bridge.client.picture import BrokenPicture, Frame
from shotstream.bridge.client.playout import Playout
from shotstream.bridge.client.receipts import Receipt, Status
from shotstream.bridge.client.requests import RETRY_MOST_S, RETRY_S, Ledger
from shotstream.bridge.protocol import messages as m

FilmState: TypeAlias = Literal["opening", "open", "detached", "resuming", "closed", "lost"]
"""``detached``: the connection is gone, the film waits at the server. ``resuming``: it is being taken up again.
``closed`` and ``lost`` are final; a lost film has an error."""

GONE = ("no_session", "bad_token", "expired")
"""Answers to `resume` after which there is nothing to resume."""
EVENTS_KEPT = 1024
"""Events that an application has not fetched; older ones are forgotten."""


_TOLD_ONCE = (m.ShotBegin, m.ShotEnd, m.ChoiceReady, m.SnapshotMade, m.Restored, m.Forked)


@dataclass(frozen=True)
class StateChanged:
    """A film has a new state; ``code`` and ``message`` say why where something went wrong. ``reopened``: the server had
    lost the film, and a new one has begun with the same arguments."""

    state: FilmState
    before: FilmState
    code: str = ""
    message: str = ""
    reopened: bool = False


FilmEvent: TypeAlias = (
    m.ShotBegin | m.ShotEnd | m.ChoiceReady | m.Stats | m.Starved | m.SnapshotMade | m.Restored | m.Forked | m.Gap
    | m.Error | m.ModelStatus | StateChanged
)  # fmt: skip
"""What `Film.events` gives."""


class FilmCore:
    """State of one film. ``arguments`` is None for a fork, which is opened by another film's request."""

    def __init__(self, arguments: m.OpenSession | None, next_id: Callable[[], int], reopen: bool = False) -> None:
        self.state: FilmState = "opening"
        self.session = ""
        self.opened: m.SessionOpened | None = None
        self.arguments = arguments
        self.reopen = reopen and arguments is not None
        self.error: tuple[str, str] | None = None
        """Code and sentence of what ended the film, or of the last refused attempt to open it."""
        self.player: Playout[Frame] = Playout()
        self.shots: dict[int, m.ShotBegin] = {}
        self.receipts: deque[Receipt] = deque(maxlen=256)
        self.happened: deque[FilmEvent] = deque(maxlen=EVENTS_KEPT)
        """What the application has not been told yet."""
        self.changed: deque[Receipt] = deque()
        """Receipts with a callback whose status has changed."""
        self.received = self.duplicates = self.broken = self.resumed = self.reopened = 0
        self._next_id = next_id
        self._ledger = Ledger()
        self._unseen: deque[Receipt] = deque(maxlen=256)
        self._entry_id = arguments.id if arguments else 0
        self._entry_due, self._entry_tries = 0.0, 0
        self._epoch = 0
        self._tell_credit = False
        self._fork: Receipt | None = None
        self._told_lately: deque[FilmEvent] = deque(maxlen=64)
        self._trouble = ("", "")

    # --- what the application asks ------------------------------------------------------------------------------------
    def ask(self, now: float, message: m.SessionRequest, on_change: Callable[[Receipt], None] | None = None) -> Receipt:
        """Send a request as soon as that is possible; its ``id`` and ``session`` are filled in here."""
        number = self._next_id()
        receipt = Receipt(number, str(type(message).__struct_config__.tag), now, on_change)
        self.receipts.append(receipt)
        if self.state in ("closed", "lost"):
            code, text = self.error or ("no_session", "the film is closed")
            self._refuse(receipt, code, text)
        elif not self._ledger.ask(now, replace(message, id=number), receipt):
            self._refuse(receipt, "queue_full", "256 requests wait for an answer already")
        elif isinstance(message, m.Pause | m.Play):
            self.player.pause(isinstance(message, m.Pause))
        return receipt

    def frame(self, now: float) -> Frame | None:
        """What is to be shown now."""
        frame = self.player.due(now)
        self._seen(now, frame)
        return frame

    def take(self, now: float) -> Frame | None:
        """The next frame at once, for those who want every frame rather than a steady pace."""
        frame = self.player.take(now)
        self._seen(now, frame)
        return frame

    def _seen(self, now: float, frame: Frame | None) -> None:
        while frame is not None and self._unseen and self._unseen[0].seq <= frame.seq:
            receipt = self._unseen.popleft()
            receipt.seen_ms = (now - receipt.asked_at) * 1000

    @property
    def waiting(self) -> int:
        """Requests without an answer."""
        return len(self._ledger)

    # --- what is to be sent -------------------------------------------------------------------------------------------
    def entry(self, now: float) -> m.OpenSession | m.Resume | None:
        """The request that opens the film or takes it up again, if it is time to send it."""
        if self.state == "detached" and now >= self._entry_due:
            self._entry_id, self._entry_tries = self._next_id(), 0
            self._become("resuming")
        if self.state not in ("opening", "resuming") or now < self._entry_due:
            return None
        if self.state == "opening":
            if self.arguments is None:
                return None
            message: m.OpenSession | m.Resume = replace(self.arguments, id=self._entry_id)
        else:
            assert self.opened is not None
            message = m.Resume(
                id=self._entry_id, session=self.session, token=self.opened.token, next_seq=self.player.next_seq
            )
        self._entry_due = now + min(RETRY_S * 2**self._entry_tries, RETRY_MOST_S)
        self._entry_tries += 1
        return message

    def request(self, now: float) -> m.SessionRequest | None:
        """The next request to be sent now, first time or again."""
        asked = self._ledger.next(now) if self.state == "open" else None
        if asked is None:
            return None
        self._ledger.sent(now, asked)
        return replace(asked.message, session=self.session)

    def credit(self) -> m.Credit | None:
        """What the server may send, where there is something new to tell."""
        if self.state != "open":
            return None
        upto = self.player.grant(self._tell_credit)
        if upto is None:
            return None
        self._tell_credit = False
        player = self.player
        return m.Credit(
            session=self.session, upto=upto, played=player.played, lead_ms=player.lead_ms, late=player.late,
            dropped=player.dropped,
        )  # fmt: skip

    # --- what happens to the connection -------------------------------------------------------------------------------
    def detach(self, now: float) -> None:
        """The connection is gone, or the server says that the film is not held by it."""
        self._entry_due, self._entry_tries = now, 0
        if self.state in ("open", "resuming"):
            self._become("detached")

    def fail(self, now: float, code: str, message: str) -> None:
        """The film is gone at the server."""
        self.error = (code, message)
        for receipt in self._ledger.all():
            self._ledger.over(receipt.id)
            self._refuse(receipt, code, message)
        if self.reopen and code == "no_session" and self.arguments is not None and self.session:
            # with another nonce, or the server would look for the film that it has lost
            self.reopened += 1
            self.arguments = replace(self.arguments, nonce=f"{self.arguments.nonce[:100]}.{self.reopened}")
            self._entry_id, self._entry_due, self._entry_tries = self._next_id(), now, 0
            self.session, self.opened, self._epoch = "", None, 0
            self.shots.clear()
            self._unseen.clear()
            self._become("opening", code, message, reopened=True)
            return
        self._become("lost", code, message)

    def end(self, message: str) -> None:
        """The film is over because it was to be."""
        for receipt in self._ledger.all():
            if receipt.kind == "close_session":
                self._answer(receipt.id, "applied")
            else:
                self._ledger.over(receipt.id)
                self._refuse(receipt, "no_session", "the film was closed")
        self._become("closed", message=message)

    def _become(self, state: FilmState, code: str = "", message: str = "", reopened: bool = False) -> None:
        if state == self.state and not reopened:
            return
        before, self.state = self.state, state
        self.happened.append(StateChanged(state, before, code, message, reopened))
        if state in ("closed", "lost"):
            self.player.rest()

    # --- what the server says -----------------------------------------------------------------------------------------
    def owns(self, re: int) -> bool:
        """Whether request ``re`` is one of this film's."""
        entering = self.state in ("opening", "resuming") and re == self._entry_id
        return re > 0 and (entering or self._ledger.find(re) is not None)

    def await_fork(self, receipt: Receipt) -> None:
        """This film is opened by the answer to a request of another one."""
        self._fork, self._entry_id = receipt, receipt.id

    def tick(self, now: float) -> None:
        """A fork that was refused is no film."""
        if self.state == "opening" and self._fork is not None and self._fork.status in ("rejected", "cancelled"):
            self.fail(now, self._fork.code, self._fork.error)

    def opens(self, message: m.SessionOpened) -> bool:
        """Whether ``message`` opens this film or takes it up again."""
        return self.state in ("opening", "resuming") and message.re == self._entry_id

    def open(self, now: float, message: m.SessionOpened) -> None:
        """The server has opened the film, or given it back."""
        fresh = self.opened is None
        self.opened, self.session, self.error = message, message.session, None
        if fresh:
            fps = message.fps[0] / message.fps[1] if message.fps[0] and message.fps[1] else 16.0
            window = message.window or 24
            policy = self.arguments.policy if self.arguments else "pace"
            if self.reopened:
                self.player.restart(window)
            else:
                self.player = Playout(fps, message.tb or 90_000, window, message.chunk_frames or 12, policy)
            if not self.arguments:  # a fork may count on from the film that it came from
                self.player.begin_at(message.next_seq)
        else:
            self.resumed += 1
            self._ledger.send_again(now)
        self._tell_credit = not fresh or message.next_seq > 0
        self._become("open")

    def handle(self, now: float, message: m.FromServer, payload: memoryview | bytes | None) -> None:
        """Anything about this film but `session_opened`."""
        match message:
            case m.Frame():
                self._frame(now, message, payload)
            case m.Ack():
                self._answer(message.re, "accepted" if message.status == "duplicate" else message.status)
            case m.Applied():
                self._applied(message.re, message.seq, message.shot, message.chunk, message.caption, message.latency_ms)
            case m.Rejected():
                self._no(now, message.re, message.code, message.message, 0)
            case m.Error():
                self._error(now, message)
            case m.SessionClosed():
                self._closed(now, message)
            case _:
                self._told(message)

    def _told(self, message: m.FromServer) -> None:
        if isinstance(message, _TOLD_ONCE):
            if message in self._told_lately:
                return  # a film that is taken up again is told the last moments twice
            self._told_lately.append(message)
        match message:
            case m.ShotBegin():
                self._shot(message)
            case m.Gap():
                self.player.skip(message.until)
            case m.Starved(reason="story"):
                self.player.rest()
            case m.SnapshotMade() | m.Restored():
                receipt = self._ledger.find(message.re)
                if receipt is not None:
                    receipt.snap = message.snap
                self._answer(message.re, "applied")
            case m.Forked():
                self._answer(message.re, "applied")
            case m.ShotEnd() | m.ChoiceReady() | m.Stats() | m.Starved() | m.ModelStatus():
                pass
            case _:
                return
        self.happened.append(message)

    def _frame(self, now: float, header: m.Frame, payload: memoryview | bytes | None) -> None:
        if header.seq < self.player.next_seq:
            self.duplicates += 1
            return
        self.received += 1
        if header.prompt:
            # the order of messages says `applied` came first; where a lost connection took it along, this stands for it
            begin = self.shots.get(header.shot)
            caption = begin.caption if begin and begin.cause == header.prompt else ""
            self._applied(header.prompt, header.seq, header.shot, header.chunk, caption, 0.0)
        try:
            frame = Frame(header, payload, now)
        except BrokenPicture:
            self.broken += 1
            self.player.skip(header.seq + 1)
            return
        if frame.epoch < self._epoch:
            self.player.skip(header.seq + 1)
        else:
            self.player.add(frame, now)

    def _shot(self, message: m.ShotBegin) -> None:
        self.shots[message.shot] = message
        while len(self.shots) > 64:
            del self.shots[min(self.shots)]
        if message.flush:
            self._epoch = max(self._epoch, message.epoch)
            self.player.flush(self._epoch)

    def _answer(self, re: int, status: Status) -> None:
        receipt = self._ledger.find(re)
        if receipt is None:
            return
        if receipt.advance(status) and receipt.on_change is not None:
            self.changed.append(receipt)
        if receipt.done:
            self._ledger.over(re)
        else:
            self._ledger.answered(re)

    def _applied(self, re: int, seq: int, shot: int, chunk: int, caption: str, latency_ms: float) -> None:
        receipt = self._ledger.find(re)
        if receipt is None:
            return
        receipt.seq, receipt.shot, receipt.chunk = seq, shot, chunk
        receipt.caption, receipt.latency_ms = caption, latency_ms
        self._unseen.append(receipt)
        self._answer(re, "applied")

    def _no(self, now: float, re: int, code: str, message: str, retry_after_ms: int) -> None:
        """Request ``re`` will not be done; ``retry_after_ms`` is how long to wait before another try, if one helps."""
        if re == self._entry_id and self.state in ("opening", "resuming"):
            self._no_entry(now, code, message, retry_after_ms)
            return
        receipt = self._ledger.find(re)
        if receipt is None:
            return
        if code == "rate_limited" and not receipt.answered:
            self._ledger.postpone(re, now + max(0.1, min(retry_after_ms / 1000, 10.0)))
            return
        self._ledger.over(re)
        self._refuse(receipt, code, message)

    def _no_entry(self, now: float, code: str, message: str, retry_after_ms: int) -> None:
        passes = code in ("model_loading", "rate_limited", "shutting_down")
        if not passes and (self.state == "opening" or code in GONE):
            self.fail(now, code, message)
            return
        # a new number, for the server remembers its answer to the old one; the nonce keeps it one film
        self.error = (code, message)
        self._entry_id, self._entry_tries = self._next_id(), 0
        self._entry_due = now + max(0.5, min(retry_after_ms / 1000 or 1.0, 10.0))

    def _refuse(self, receipt: Receipt, code: str, message: str) -> None:
        receipt.code, receipt.error = code, message
        if receipt.advance("cancelled" if code == "cancelled" else "rejected") and receipt.on_change is not None:
            self.changed.append(receipt)

    def _error(self, now: float, message: m.Error) -> None:
        if message.code == "not_owner":
            # whoever has the token took the film over; taking it back would go to and fro for ever
            self.fail(now, message.code, message.message)
        elif self.state == "open" and message.code == "no_session":
            # it may only have been away for too long: the answer to `resume` decides, and requests wait for it
            self.detach(now + 0.1)
        elif message.re and self.owns(message.re):
            self._no(now, message.re, message.code, message.message, message.retry_after_ms)
            return
        elif message.code != "model_failed":  # after which the film goes on
            self._trouble = (message.code, message.message)
        self.happened.append(message)

    def _closed(self, now: float, message: m.SessionClosed) -> None:
        if any(receipt.kind == "close_session" for receipt in self._ledger.all()):
            self.end(message.reason)
            return
        code, text = self._trouble
        code = code or ("expired" if message.code == "expired" else "no_session")
        self.fail(now, code, text or f"the server closed the film: {message.reason}")

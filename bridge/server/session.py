"""One film as the server sees it: requests in, frames and receipts out, credit between them. Pure: no socket, no clock.

The hub hands in what clients and the model say and asks when there is a chunk to make; `Desk` is what a session may
use. Chunks are made one at a time; everything that changes the picture takes effect between two of them.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from shotstream.bridge.model import orders
from shotstream.bridge.protocol import messages as m
from shotstream.bridge.protocol.limits import CLOCK_HZ, TEXT
from shotstream.bridge.server.choosing import Branch, Choosing, Progress
from shotstream.bridge.server.desk import Boundary, Desk, Making
from shotstream.bridge.server.pacing import HASTE_WAITS_S, Haste, Pacing
from shotstream.bridge.server.plan import Plan, ShotOrder, SteerOrder
from shotstream.bridge.server.replay_buffer import Payload, ReplayBuffer, Said
from shotstream.bridge.server.requests import RequestMemory
from shotstream.bridge.server.words import Words


class Session:
    """A film with its client. ``owner`` is the connection, None while detached."""

    def __init__(
        self, desk: Desk, name: str, token: str, owner: bytes, opened: m.OpenSession, words: Words, seed: int,
        now: float,
    ) -> None:  # fmt: skip
        self.desk, self.name, self.token, self.words, self.seed = desk, name, token, words, seed
        self.owner: bytes | None = owner
        self.opened = opened
        window = min(max(opened.window, desk.limits.window_min), desk.limits.window_max)
        self.pacing = Pacing(window, desk.limits.window_max, desk.facts.fps, now)
        self.memory = RequestMemory(desk.limits.ids)
        self.buffer = ReplayBuffer(max(desk.limits.replay_frames, window), desk.slots)
        self.plan = Plan()
        self.haste = Haste()
        self.choosing = Choosing(self)
        self.making: Making | None = None
        self.film = desk.new_number()
        self.film_open = False
        self.announced = False
        self.parent: Session | None = None
        """The session that this one was forked from."""
        self.paused = False
        self.running: ShotOrder | None = None
        self.shot_frames = 0
        self.epoch = 0
        self.prompt = 0
        self.shots = 0
        self.begun, self.detached_at = now, 0.0
        self.flush_next = False
        self.starved_told = False
        self.chunk_ms: list[float] = []
        state, global_caption = words.begin(opened)
        self.shown_words = state
        self.global_caption = global_caption
        self.next_global: str | None = None
        self.forget_next = False
        self.boundary = Boundary(b"", 0, state, global_caption)
        self.snapshots: dict[str, Boundary] = {}
        self.waiting_snapshots: list[m.Snapshot] = []

    @property
    def next_seq(self) -> int:
        """Number of the next frame to send."""
        return self.pacing.next_seq

    # --- talking ----------------------------------------------------------------------------------------------------
    def say(self, message: m.ServerMessage, payload: Payload | None = None) -> None:
        """Send, and keep for a client that comes back."""
        self.buffer.add(Said(self.next_seq, message, payload))
        self.desk.say(self, message, payload)

    def answer(self, request: int, message: m.ServerMessage) -> None:
        """Say the outcome of a request, and remember it."""
        self.memory.answer(request, message)
        self.say(message)

    def ack(self, request: int, status: Any = "accepted") -> None:
        """Acknowledge a request."""
        if request:
            place = m.Place(shot=self.shots, chunk=0)
            self.answer(request, m.Ack(re=request, session=self.name, status=status, at=place))

    def reject(self, request: int, code: str, text: str) -> None:
        """Refuse a request."""
        if request:
            self.answer(request, m.Rejected(re=request, session=self.name, code=code, message=text[:TEXT]))

    def supersede(self, requests: list[int]) -> None:
        """Tell that earlier requests made way."""
        for request in requests:
            self.ack(request, "superseded")

    # --- the film in the studio -------------------------------------------------------------------------------------
    @property
    def beginning(self) -> bool:
        """True while the first chunk of a shot is being made."""
        making = self.making
        return making is not None and making.branch is None and isinstance(making.order, ShotOrder)

    def set_scene(self, global_caption: str | None, words: Any, *, forget: bool) -> None:
        """New circumstances from the next shot on."""
        if global_caption is not None:
            self.next_global = global_caption
        self.forget_next |= forget
        if not self.plan.set_state(words):
            self.shown_words = words

    def open_film(self) -> None:
        """Ask the studio for the film, from the last boundary if there was one."""
        self.film_open = False
        at = self.boundary
        self.desk.order(orders.OpenFilm(self.film, self.seed, at.global_caption, at.saved))

    def close_film(self) -> None:
        """Give everything back."""
        self.choosing.drop()
        if self.making is not None:
            self.making.unwanted = True
            self.desk.order(orders.Stop(self.making.ticket))
        self.desk.order(orders.CloseFilm(self.film))
        self.buffer.clear()

    def opened_message(self, request: int, resumed: bool = False) -> m.SessionOpened:
        """How a client is told about its session."""
        facts = self.desk.facts
        return m.SessionOpened(
            re=request, session=self.name, token=self.token, model=facts.name, width=facts.width, height=facts.height,
            fps=(facts.fps, 1), tb=CLOCK_HZ, chunk_frames=facts.chunk_frames,
            first_chunk_frames=facts.first_chunk_frames, window=self.pacing.window, seed=self.seed, enc=self.opened.enc,
            director=self.words.name, resumed=resumed, next_seq=self.next_seq, epoch=self.epoch,
        )  # fmt: skip

    def film_opened(self) -> None:
        """The studio has the film."""
        self.film_open = True
        if not self.announced:
            self.announced = True
            request = self.opened.id
            opened = self.opened_message(request)
            self.answer(request, opened)
            if self.parent is not None:  # the fork was asked for there, and would be asked for there again
                self.parent.memory.answer(request, opened)
                self.parent.answer(request, m.Forked(re=request, session=self.parent.name, fork=self.name))

    def replace_film(self, boundary: Boundary) -> None:
        """Go on from a boundary: what runs and what waits is dropped."""
        self.supersede(self.plan.clear())
        self.choosing.drop()
        self.give_up_making()
        self.desk.order(orders.CloseFilm(self.film))
        self.film = self.desk.new_number()
        self.boundary, self.shown_words, self.global_caption = boundary, boundary.words, boundary.global_caption
        self.next_global, self.running = None, None
        self.flush_next = True
        self.open_film()

    def model_lost(self) -> None:
        """The model process died: the shot that was running, or about to, is planned again from its beginning."""
        making, self.making = self.making, None
        again = self.running and replace(self.running, request=0)
        if making is not None:
            self.desk.slots.drop(making.slot)
            if making.branch is None and isinstance(making.order, ShotOrder):
                again = making.order
            elif isinstance(making.order, SteerOrder):
                self.supersede([making.order.request])
            again = again and replace(again, deaths=again.deaths + 1)
            if again is not None and again.deaths > 1:  # it may be what kills the model: others want to go on
                self.reject(again.request, "model_failed", "the model process died twice while it made this shot")
                again = None
        self.choosing.drop()
        if again is not None and self.plan.cut is None:
            self.supersede(self.plan.put_cut(replace(again, flush=True)))
        elif again is not None:
            self.supersede([again.request])
        self.running = None
        self.film_open = False
        self.film = self.desk.new_number()
        self.desk.say(self, m.Error(
            code="model_failed", retryable=True, session=self.name,
            message="the model process died; the film goes on from its last shot boundary",
        ), None)  # fmt: skip

    # --- what the model says ----------------------------------------------------------------------------------------
    def kept(self, result: orders.Kept) -> None:
        """A shot boundary was passed."""
        if result.film != self.film:
            return
        making = self.making
        words = self.shown_words
        if making is not None and isinstance(making.order, ShotOrder):
            words = making.order.before
        self.boundary = Boundary(result.saved, result.shot, words, self.global_caption)
        waiting, self.waiting_snapshots = self.waiting_snapshots, []
        for request in waiting:
            self.make_snapshot(request)

    def not_made(self, result: orders.NotMade) -> None:
        """No chunk came of it."""
        making, self.making = self.making, None
        assert making is not None
        self.desk.slots.drop(making.slot)
        if making.branch is not None:
            self.choosing.failed(making.branch, result)
            return
        order = making.order
        if result.code == "stopped" or making.film != self.film:  # the session may have gone on as another film
            self.supersede([making.request])
            return
        if result.code == "idle":
            self._end_shot("cut")
            if order is not None:
                self.reject(order.request, "internal", result.message or "no shot is running")
            return
        if order is not None:
            self.reject(order.request, result.code, result.message)
        else:  # the running shot cannot go on, and would be tried for ever
            self._end_shot("error")
            text = f"the shot has ended: {result.message or result.code}"
            self.say(m.Error(code=result.code, message=text[:TEXT], session=self.name))

    def made(self, result: orders.Made, now: float) -> None:
        """A chunk is there."""
        making, self.making = self.making, None
        assert making is not None
        self.chunk_ms = [*self.chunk_ms[-63:], result.gen_ms]
        if making.branch is not None:
            self.choosing.ready(making.branch, result, making.unwanted, now)
        elif making.film != self.film:
            self.desk.slots.drop(result.slot)
            self.supersede([making.request])
        elif making.unwanted:
            self._throw_away(making.order, result)
        else:
            self.show(result, making.order, now)

    def _throw_away(self, order: ShotOrder | SteerOrder | None, result: orders.Made) -> None:
        """A stop came too late: the model has made the chunk, but nobody shall see it."""
        self.desk.slots.drop(result.slot)
        if order is not None:
            self.supersede([order.request])
        if isinstance(order, ShotOrder):
            self._end_shot("cut")
            self.running = order
        if result.last:
            self._end_shot("cut")

    def show(
        self, result: orders.Made, order: ShotOrder | SteerOrder | None, now: float, *, speculative: bool = False
    ) -> None:
        """Send a chunk: what begins with it first, then its frames, then what ends with it."""
        if isinstance(order, ShotOrder):
            self._begin_shot(result, order)
        if order is not None and order.request:
            self.prompt = order.request
            applied = m.Applied(
                re=order.request, session=self.name, seq=self.next_seq, shot=result.shot, chunk=result.chunk,
                epoch=self.epoch, caption=result.caption, latency_ms=1000 * (now - order.arrived),
            )  # fmt: skip
            self.memory.answer(order.request, applied)
            self.say(applied)
        facts, start = self.desk.facts, 0
        for index, size in enumerate(result.sizes):
            frame = m.Frame(
                session=self.name, shot=result.shot, chunk=result.chunk, index=index, seq=self.next_seq,
                epoch=self.epoch, pts=self.next_seq * CLOCK_HZ // facts.fps, prompt=self.prompt, enc=self.opened.enc,
                w=facts.width, h=facts.height, end=index + 1 == len(result.sizes), ts=int(now * 1e6),
                gen_ms=round(result.gen_ms, 1), speculative=speculative,
            )  # fmt: skip
            self.say(frame, Payload(result.slot, start, size))
            start += size
            self.pacing.next_seq += 1
        self.desk.slots.drop(result.slot)  # the buffer holds it now
        self.shot_frames += len(result.sizes)
        self.starved_told = False
        if result.last:
            self._end_shot("max_length")

    def _begin_shot(self, result: orders.Made, order: ShotOrder) -> None:
        self._end_shot("cut")
        flush = order.flush or self.flush_next
        if flush:
            self.epoch += 1
            self.pacing.flush()
        self.flush_next = False
        self.running, self.shot_frames, self.shots = order, 0, self.shots + 1
        self.shown_words = order.after
        if order.shot.global_caption is not None:
            self.global_caption = order.shot.global_caption
        self.say(m.ShotBegin(
            session=self.name, shot=result.shot, epoch=self.epoch, seq=self.next_seq, caption=result.caption,
            global_caption=self.global_caption, size=order.size, cause=order.request, flush=flush,
        ))  # fmt: skip

    def _end_shot(self, reason: Any) -> None:
        if self.running is None:
            return
        self.running = None
        self.say(m.ShotEnd(session=self.name, shot=max(0, self.shots - 1), frames=self.shot_frames, reason=reason))

    # --- when to make what ------------------------------------------------------------------------------------------
    def deadline(self, now: float) -> float | None:
        """When the client runs dry, if there is a chunk to make for it and room for it; else None."""
        if self.paused or self.owner is None or not self.film_open or self.making is not None:
            return None
        begins = self.plan.begins(self.running is not None)
        if not begins and self.running is None:
            return None
        facts = self.desk.facts
        needed = facts.first_chunk_frames if begins else facts.chunk_frames
        flush = self.flush_next or (self.plan.cut is not None and self.plan.cut.flush)
        if not flush and not self.pacing.room(needed):
            return None
        if flush:
            return now + (HASTE_WAITS_S if self.haste.hasty(now) else 0.0)
        return now + self.pacing.lead_s(now)

    def make(self) -> None:
        """Order the next chunk."""
        slot = self.desk.slots.take(self.name)
        assert slot is not None, "the hub looks for a free slot first"
        order = self.plan.take(self.running is not None)
        self.making = Making(self.desk.new_number(), self.film, slot, order)
        shot, steer = None, ""
        if isinstance(order, ShotOrder):
            shot = self._with_scene(order.shot)
            if shot is not order.shot:
                self.making.order = replace(order, shot=shot)
        elif isinstance(order, SteerOrder):
            steer = order.caption
        self._order_chunk(shot, steer)

    def _with_scene(self, shot: orders.NewShot) -> orders.NewShot:
        """Put a scene that was announced into the shot it takes effect with."""
        if self.next_global is not None and shot.global_caption is None:
            shot = orders.NewShot(shot.caption, self.next_global, shot.chunks, shot.forget)
        if self.forget_next:
            shot = orders.NewShot(shot.caption, shot.global_caption, shot.chunks, True)
        self.next_global, self.forget_next = None, False
        return shot

    def cancel_making(self, request: int) -> bool:
        """Give the chunk in the making up if this request asked for it; False if it did not."""
        making = self.making
        if making is None or making.unwanted or making.order is None or making.order.request != request:
            return False
        self.give_up_making()
        making.order = replace(making.order, request=0)  # whoever cancels has told already
        return True

    def give_up_making(self) -> None:
        """Stop the chunk in the making; if it is too late for that, its frames are thrown away."""
        if self.making is not None and not self.making.unwanted:
            self.making.unwanted = True
            self.desk.order(orders.Stop(self.making.ticket))

    def spare(self) -> Branch | None:
        """An option whose first chunk could be made now."""
        if self.owner is None or self.paused or not self.film_open or self.making is not None:
            return None
        return self.choosing.next_waiting()

    def prepare(self, branch: Branch) -> None:
        """Branch the film off and order the option's first chunk."""
        slot = self.desk.slots.take(self.name)
        assert slot is not None, "the hub looks for a free slot first"
        branch.film, branch.progress = self.desk.new_number(), Progress.MAKING
        self.desk.order(orders.BranchFilm(branch.film, self.film))
        self.making = Making(self.desk.new_number(), branch.film, slot, branch.order, branch)
        self._order_chunk(branch.order.shot, "")

    def _order_chunk(self, shot: orders.NewShot | None, steer: str) -> None:
        making, asked = self.making, self.opened
        assert making is not None
        self.desk.order(
            orders.Make(making.film, making.ticket, making.slot, shot, steer, asked.enc, asked.quality)
        )  # fmt: skip

    # --- snapshots --------------------------------------------------------------------------------------------------
    def make_snapshot(self, request: m.Snapshot) -> None:
        """Keep the last boundary under a name."""
        name = request.name or f"shot-{self.boundary.shot}"
        self.snapshots.pop(name, None)
        self.snapshots[name] = self.boundary
        while len(self.snapshots) > self.desk.limits.snapshots:
            self.snapshots.pop(next(iter(self.snapshots)))
        self.answer(request.id, m.SnapshotMade(
            re=request.id, session=self.name, snap=name, bytes=len(self.boundary.saved), shot=self.boundary.shot
        ))  # fmt: skip

"""Frames are shown in time, in order and once, and the server is told of room when they are."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shotstream.bridge.client import Hold, Playout

PERIOD = 1 / 16


@dataclass
class Card:
    seq: int
    epoch: int = 0
    shot: int = 0
    pts: int = 0
    end: bool = False


def card(seq: int, *, epoch: int = 0, shot: int = 0) -> Card:
    return Card(seq, epoch, shot, seq * 5625, seq % 12 == 8)


def filled(count: int, now: float = 0.0, **settings) -> Playout[Card]:
    player: Playout[Card] = Playout(**settings)
    for seq in range(count):
        player.add(card(seq), now)
    return player


def show(player: Playout[Card], begin: float, end: float, step: float = 0.01) -> list[int]:
    """What an application that looks every ``step`` seconds sees, repetitions left out."""
    seen: list[int] = []
    for tick in range(int((end - begin) / step + 0.5)):
        frame = player.due(begin + tick * step)
        if frame is not None and (not seen or seen[-1] != frame.seq):
            seen.append(frame.seq)
    return seen


def test_the_first_frame_shows_at_once_and_the_others_one_period_apart() -> None:
    player = filled(4, now=7.0)
    assert player.due(7.0) is player.shown is not None
    assert player.due(7.0 + PERIOD - 0.001).seq == 0
    assert player.due(7.0 + PERIOD + 0.001).seq == 1
    assert player.due(7.0 + 3 * PERIOD + 0.001).seq == 3
    assert (player.presented, player.skipped, player.dropped) == (3, 1, 0)


def test_a_held_frame_is_the_same_object_so_that_it_is_uploaded_once() -> None:
    player = filled(1)
    assert player.due(0.0) is player.due(0.02) is player.due(5.0)


def test_a_film_goes_on_where_it_froze_and_the_freeze_is_counted() -> None:
    player = filled(2)
    assert show(player, 0.0, 0.5) == [0, 1]
    assert player.holding
    assert player.late == 1
    for seq in (2, 3, 4):
        player.add(card(seq), 0.5)
    assert show(player, 0.5, 0.5 + 3 * PERIOD) == [2, 3, 4], "nothing is hurried to make up for the freeze"
    assert player.frozen_s == pytest.approx(0.5 - 2 * PERIOD, abs=0.02)
    assert not player.holding


def test_a_frame_that_comes_a_little_late_does_not_move_the_films_clock() -> None:
    player = filled(1)
    player.due(0.0)
    player.add(card(1), PERIOD + 0.02)
    player.add(card(2), PERIOD + 0.02)
    assert player.due(PERIOD + 0.02).seq == 1
    assert player.due(2 * PERIOD + 0.001).seq == 2
    assert (player.late, player.frozen_s) == (0, 0.0)


def test_a_freeze_between_two_looks_is_counted_too() -> None:
    player = filled(1)
    player.due(0.0)
    player.add(card(1), 0.3)
    player.due(0.4)
    assert player.late == 1
    assert player.frozen_s == pytest.approx(0.4 - PERIOD)


def test_a_loading_screen_does_not_skip_the_film() -> None:
    player = filled(24)
    player.due(0.0)
    assert player.due(10.0).seq == 1
    assert (player.skipped, player.late) == (0, 0)


def test_a_slow_application_sees_the_newest_frame_whose_time_has_come() -> None:
    player = filled(9)
    assert show(player, 0.0, 0.5, step=0.2) == [0, 3, 6]
    assert player.skipped == 4


def test_after_a_flush_the_new_shot_shows_at_once_and_the_old_frames_are_gone() -> None:
    player = filled(12)
    player.due(0.0)
    player.due(0.07)
    assert player.flush(epoch=1) == 10
    player.add(card(12, epoch=1, shot=1), 0.08)
    assert player.due(0.08).seq == 12
    assert (player.dropped, player.played) == (10, 13)


def test_a_hole_in_the_film_is_shown_without_a_pause() -> None:
    player = filled(1)
    player.due(0.0)
    player.add(card(40), 0.01)
    assert player.due(PERIOD + 0.001).seq == 40
    assert player.dropped == 39


def test_waiting_without_a_story_or_while_paused_is_no_freeze() -> None:
    player = filled(1)
    player.due(0.0)
    player.rest()
    player.due(3.0)
    player.due(3.2)
    assert player.holding
    assert player.held_s > 0.1
    player.add(card(1), 3.3)
    assert player.due(3.3).seq == 1
    player.pause(True)
    player.due(3.4)
    player.due(3.7)
    assert (player.late, player.frozen_s) == (0, 0.0)


def test_an_application_can_catch_up_with_the_newest_picture() -> None:
    player = filled(24)
    player.due(0.0)
    assert player.catch_up() == 22
    assert player.due(0.001).seq == 23


def test_latest_keeps_one_chunk_and_drops_the_rest() -> None:
    player = filled(33, policy="latest", window=96)
    assert player.queued == 12
    assert player.due(0.0).seq == 21


def test_credit_is_granted_in_steps_of_half_a_chunk_and_when_the_server_could_not_go_on() -> None:
    player = filled(24)
    told = []
    for tick in range(200):
        player.due(tick * 0.01)
        if (upto := player.grant()) is not None:
            told.append(upto)
    assert told == [30, 36, 42, 48]
    small = filled(9, window=12)
    show(small, 0.0, 1.0)
    assert small.grant() == 21, "3 more than the server grants itself would not be enough for a chunk"
    assert small.grant() is None


class Supply:
    """A server that sends up to the credit, in chunks, each after some time."""

    def __init__(self, player: Playout[Card]) -> None:
        self.player, self.sent, self.upto, self.epoch = player, 0, player.window, 0

    def chunk(self, now: float, flush: bool, lose: int) -> None:
        if flush:
            self.epoch += 1
            self.player.flush(self.epoch)
        size = 12 if self.sent else 9
        if self.upto - self.sent < size:
            return
        for index in range(size):
            if index >= lose:
                self.player.add(card(self.sent, epoch=self.epoch, shot=self.epoch), now)
            self.sent += 1


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0.001, 1.5), st.floats(0.002, 0.3), st.booleans(), st.integers(0, 5)), max_size=30),
    st.sampled_from([12, 18, 24, 48]),
)
def test_whatever_comes_frames_show_once_and_in_order_and_the_lead_is_bounded(steps, window) -> None:
    player: Playout[Card] = Playout(window=window)
    supply, now, seen, granted = Supply(player), 0.0, [], window
    for wait, step, flush, lose in steps:
        supply.chunk(now, flush, lose)
        ends = now + wait
        while now < ends:
            frame = player.due(now)
            if frame is not None and (not seen or seen[-1] != frame.seq):
                seen.append(frame.seq)
            upto = player.grant()
            if upto is not None:
                assert upto > granted, "credit only grows"
                granted = supply.upto = upto
            assert player.queued <= window
            assert player.next_seq - player.played <= window
            now += step
    assert seen == sorted(set(seen))
    assert player.presented + player.skipped + player.dropped + player.queued == player.next_seq
    assert player.presented == len(seen)


def test_a_new_shot_fades_in_over_the_last_frame_of_the_old_one() -> None:
    hold: Hold[Card] = Hold(fade_ms=100)
    old, new = card(0), card(1, shot=1)
    hold.update(0.0, old)
    assert (hold.weight, hold.previous) == (1.0, None)
    hold.update(1.0, new)
    assert (hold.weight, hold.previous) == (0.0, old)
    hold.update(1.05, new)
    assert hold.weight == pytest.approx(0.5)
    hold.update(1.1, new)
    assert (hold.weight, hold.previous) == (1.0, None)


def test_an_engine_learns_how_long_the_picture_has_stood_still_but_not_of_flickers() -> None:
    hold: Hold[Card] = Hold(after_ms=80)
    hold.update(0.0, card(0), held_s=0.05)
    assert not hold.holding
    hold.update(0.2, card(0), held_s=0.2)
    assert (hold.holding, hold.hold_s) == (True, 0.2)


def test_a_frame_that_comes_twice_is_taken_once() -> None:
    player = filled(3)
    assert not player.add(card(1), 0.0)
    assert player.queued == 3


def test_room_for_a_chunk_is_told_as_soon_as_it_is_there() -> None:
    player = filled(21)  # a first chunk of 9 and one of 12, with a window of 24
    granted = []
    for tick in range(200):
        player.due(tick * PERIOD / 4)
        upto = player.grant()
        if upto is not None:
            granted.append((player.played, upto))
    assert (9, 33) in granted
    assert len(granted) <= 5

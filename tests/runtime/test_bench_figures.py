"""Percentiles, the player on paper and bootstrap intervals against data whose answers are known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shotstream.runtime.bench.noise import median_ratio, shots_ratio
from shotstream.runtime.bench.playout import play_out
from shotstream.runtime.bench.samples import ChunkSample, quantile, spread, summarise


def test_quantiles_are_what_they_are_called() -> None:
    assert quantile([3.0, 1.0, 2.0], 0.5) == 2.0
    assert quantile([1.0, 2.0, 3.0, 4.0], 0.5) == 2.0
    assert quantile([float(n) for n in range(1, 101)], 0.95) == 95.0
    assert quantile([float(n) for n in range(1, 301)], 0.99) == 297.0
    assert quantile([7.0], 0.95) == 7.0


@given(st.lists(st.floats(0.001, 10.0), min_size=1, max_size=130), st.sampled_from([0.5, 0.95, 0.99]))
def test_a_quantile_is_the_smallest_value_that_the_share_does_not_exceed(values: list[float], share: float) -> None:
    found = quantile(values, share)
    assert sum(value <= found for value in values) >= share * len(values) - 1e-6
    assert sum(value < found for value in values) < share * len(values)


def test_a_p99_is_only_given_for_a_hundred_samples() -> None:
    few, enough = spread([n / 1000 for n in range(1, 100)]), spread([n / 1000 for n in range(1, 101)])
    assert (few.samples, few.p99_ms, few.max_ms) == (99, None, 99.0)
    assert few.jitter == 99.0 / 50.0
    assert (enough.samples, enough.p99_ms, enough.max_ms) == (100, 99.0, 100.0)
    assert enough.jitter == 99.0 / 50.0


# ---------------------------------------------------------------------------------- the player
def test_chunks_in_time_never_stall_the_player() -> None:
    # 9 frames last 0.5625 s, 12 last 0.75 s: the third chunk comes at the very moment it is due.
    played = play_out([10.0, 10.5, 10.0 + 0.5625 + 0.75], [9, 12, 12], 16)
    assert played.stalls_s == (0.0, 0.0, 0.0)
    assert (played.late, played.longest_s, played.total_s) == (0, 0.0, 0.0)


def test_rounding_is_no_stall() -> None:
    """A thousand chunks of 0.4 s, each at its very moment: sums and products of floats differ in the last digits."""
    assert play_out([0.1 + 0.4 * n for n in range(1000)], [12] * 1000, 30).late == 0


def test_a_late_chunk_stalls_and_moves_all_that_follows() -> None:
    # Due at 0.5625, comes at 1.0625; so the next is due at 1.8125 and not at 1.3125.
    played = play_out([0.0, 1.0625, 1.75, 3.0], [9, 12, 12, 12], 16)
    assert played.stalls_s == pytest.approx((0.0, 0.5, 0.0, 3.0 - 1.8125 - 0.75))
    assert played.late == 2
    assert played.longest_s == pytest.approx(0.5)


def test_a_lead_that_was_gained_is_used_up_before_the_picture_stands_still() -> None:
    arrivals = [0.0, 0.1, 0.2, 2.0, 2.9]
    played = play_out(arrivals, [9, 12, 12, 12, 12], 16)
    assert played.stalls_s == pytest.approx((0.0, 0.0, 0.0, 0.0, 0.0875))


@given(
    st.lists(st.tuples(st.floats(0.0, 3.0), st.integers(1, 12)), min_size=1, max_size=30),
    st.floats(0.0, 1000.0),
)
def test_the_film_takes_its_own_length_and_the_stalls(steps: list[tuple[float, int]], begin: float) -> None:
    """Whoever plays ends at the last arrival plus its frames, or later if there was still something to show."""
    arrivals = [begin + sum(step for step, _ in steps[: n + 1]) for n in range(len(steps))]
    frames = [count for _, count in steps]
    played = play_out(arrivals, frames, 16)
    ends = arrivals[0] + sum(frames) / 16 + played.total_s
    assert ends >= arrivals[-1] + frames[-1] / 16 - 1e-6
    assert played.stalls_s[0] == 0.0
    if played.stalls_s[-1]:
        assert ends == pytest.approx(arrivals[-1] + frames[-1] / 16)


def test_no_chunks_are_no_film() -> None:
    assert play_out([], [], 16).longest_s == 0.0


# ---------------------------------------------------------------------------------- the summary
def sample(shot: int, chunk: int, asked: float, took: float, **parts: float) -> ChunkSample:
    return ChunkSample(shot, chunk, 12 if chunk else 9, asked, asked + took, parts)


def test_a_summary_counts_misses_by_position_and_says_where_time_goes() -> None:
    samples = [
        sample(0, 0, 0.0, 0.6, context=0.2, denoise=0.3),
        sample(0, 1, 0.6, 0.5, denoise=0.4),
        sample(1, 0, 1.1, 1.2, context=0.3, denoise=0.5),  # due at 0.6 + 0.5625 + 0.75, comes at 2.3
        sample(1, 1, 2.3, 0.5, denoise=0.4),
    ]
    found = summarise(samples, 16)
    first, later = found.positions
    assert (first.late, first.over_limit, first.limit_ms) == (1, 2, 562.5)
    assert (later.late, later.over_limit, later.limit_ms) == (0, 0, 750.0)
    assert (found.late, found.over_limit) == (1, 2)
    assert found.longest_stall_ms == pytest.approx(387.5)
    assert (found.first_frame_cold_ms, found.first_frame.p50_ms, found.first_frame.samples) == (600.0, 1200.0, 1)
    assert first.parts_ms == pytest.approx({"context": 250.0, "denoise": 400.0, "other": 250.0})
    assert (found.frames, found.fps) == (42, 15.0)
    assert found.realtime == pytest.approx(15 / 16, abs=1e-3)


def test_whatever_parts_there_are_add_up_to_the_mean_time() -> None:
    found = summarise([sample(0, 0, 0.0, 1.0, novel=0.25), sample(1, 0, 1.0, 3.0, denoise=1.0)], 16).positions[0]
    assert list(found.parts_ms) == ["novel", "denoise", "other"]
    assert sum(found.parts_ms.values()) == pytest.approx(2000.0)


# ---------------------------------------------------------------------------------- intervals
def test_the_interval_of_five_values_is_the_one_that_can_be_counted_out() -> None:
    """A drawn median is the smallest of five with probability 5.8 %, so the 2.5 % end is the smallest itself."""
    found = median_ratio([1.0] * 5, [1.0, 2.0, 3.0, 4.0, 5.0])
    assert (found.value, found.low, found.high) == (3.0, 1.0, 5.0)


def test_values_without_noise_have_an_interval_without_width() -> None:
    found = median_ratio([2.0] * 9, [3.0] * 7)
    assert (found.value, found.low, found.high, found.verdict) == (1.5, 1.5, 1.5, "slower")
    assert median_ratio([3.0] * 7, [2.0] * 9).verdict == "faster"
    assert median_ratio([3.0] * 7, [3.0] * 9).verdict == "same within noise"


def test_equal_runs_are_called_the_same_nearly_as_often_as_promised() -> None:
    generator = np.random.default_rng(1)
    runs = [generator.gamma(40.0, size=(2, 25)) for _ in range(300)]
    called = sum(median_ratio(a, b, rounds=400).verdict == "same within noise" for a, b in runs)
    assert 0.9 * len(runs) <= called < len(runs)


def test_a_true_change_is_found_and_lies_in_the_interval() -> None:
    generator = np.random.default_rng(2)
    runs = [(generator.normal(100, 2, 40), generator.normal(110, 2, 40)) for _ in range(100)]
    found = [median_ratio(a, b, rounds=400) for a, b in runs]
    assert all(ratio.verdict == "slower" for ratio in found)
    assert sum(ratio.low <= 1.1 <= ratio.high for ratio in found) >= 90


def test_the_same_files_always_get_the_same_interval() -> None:
    values = list(np.random.default_rng(3).normal(100, 2, 30))
    assert median_ratio(values, values[::-1]) == median_ratio(values, values[::-1])


def test_all_positions_together_do_not_pretend_that_chunks_of_a_shot_are_independent() -> None:
    """Each shot has a factor of its own for all its seven chunks: seven such columns tell no more than one."""
    generator = np.random.default_rng(4)
    old, new = (np.exp(generator.normal(0, 0.1, (30, 1))) * np.arange(1, 8) for _ in range(2))
    together, alone = shots_ratio(old, new), shots_ratio(old[:, :1], new[:, :1])
    assert together.value == pytest.approx(alone.value)
    assert together.high - together.low == pytest.approx(alone.high - alone.low, rel=0.05)


def test_of_two_values_in_the_middle_both_ratios_take_the_lower() -> None:
    old, new = [1.0] * 6, [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    assert median_ratio(old, new).value == 3.0
    assert shots_ratio(np.array([old]).T, np.array([new]).T).value == pytest.approx(3.0)


def test_positions_together_are_their_geometric_mean() -> None:
    old, new = np.array([[1.0, 1.0]] * 5), np.array([[2.0, 8.0]] * 5)
    assert shots_ratio(old, new).value == pytest.approx(4.0)

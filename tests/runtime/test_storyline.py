"""Stories being told: scenes, choices, how many shots there will be, and which captions are too long."""

from __future__ import annotations

import pytest

from shotstream.runtime.errors import UserError
from shotstream.runtime.story import parse_text
from shotstream.runtime.storyline import (
    Choice,
    Option,
    Scene,
    Story,
    StoryShot,
    Taken,
    Telling,
    check_lengths,
    full_caption,
)

SEA, CITY, CAVE = Scene("The sea.", line=6), Scene("The city.", keep_memory=True, line=9), Scene("A cave.", line=12)
WHERE = Choice(
    "Where?",
    (
        Option("sea", "to the sea", (SEA, StoryShot("it swims", line=7), StoryShot("it dives", line=8))),
        Option("city", "to the city", (StoryShot("it sings", line=10), CITY)),
    ),
    line=5,
)
WHEN = Choice(
    "When?",
    (Option("now", "at once", (CAVE, StoryShot("it hides"))), Option("later", "not yet", (StoryShot("it waits"),))),
)
STORY = Story("s.yaml", "A cat.", (StoryShot("it waves", line=4), WHERE, StoryShot("it rests"), WHEN, StoryShot("end")))
SEA_TAKEN = Taken("Where?", "sea", "to the sea", ("sea", "city"))


def captions(telling: Telling | Story) -> list[str]:
    return [shot.caption for shot in telling]


def test_a_story_played_as_it_is_takes_the_first_options() -> None:
    assert captions(STORY) == ["it waves", "it swims", "it dives", "it rests", "it hides", "end"]
    assert STORY.total_shots == 6


def test_the_shots_after_a_choice_follow_every_option() -> None:
    city, later = WHERE.options[1], WHEN.options[1]
    assert captions(Telling(STORY, [city, later])) == ["it waves", "it sings", "it rests", "it waits", "end"]
    assert captions(Telling(STORY, [city])) == ["it waves", "it sings", "it rests", "it hides", "end"]


def test_scenes_and_choices_come_with_the_first_shot_behind_them_and_no_other() -> None:
    shots = list(STORY)
    assert [shot.scene for shot in shots] == [None, SEA, None, None, CAVE, None]
    assert [len(shot.taken) for shot in shots] == [0, 1, 0, 0, 1, 0]
    assert shots[1].taken == (SEA_TAKEN,)
    city = list(Telling(STORY, [WHERE.options[1]]))
    assert [shot.scene for shot in city] == [None, None, CITY, CAVE, None]  # the option's last scene waits for a shot


def test_an_open_choice_is_asked_when_the_story_has_come_to_it_and_not_before() -> None:
    asked: list[str] = []

    def ask(choice: Choice) -> Option:
        asked.append(choice.question)
        return choice.options[1]

    telling = Telling(STORY, [None, WHEN.options[0]], ask)
    assert telling.total_shots is None  # three shots more by the sea than in the city: nobody knows yet
    shots = iter(telling)
    assert next(shots).caption == "it waves"
    assert asked == []
    assert next(shots).caption == "it sings"
    assert asked == ["Where?"]
    assert telling.total_shots == 5
    assert [shot.caption for shot in shots] == ["it rests", "it hides", "end"]
    assert asked == ["Where?"]


def test_the_total_is_known_when_all_options_are_as_long() -> None:
    story = Story("s", "A cat.", (WHEN, StoryShot("end")))
    assert Telling(story, ask=lambda choice: choice.options[0]).total_shots == 2
    assert Telling(STORY, [WHERE.options[1]], ask=lambda choice: choice.options[0]).total_shots == 5


def test_the_full_caption_is_joined_as_the_reference_does() -> None:
    assert full_caption("A cat.", 3, "it waves") == "A cat.shot3:it waves"


def full_captions_checked(story: Story | Telling) -> set[str]:
    seen: set[str] = set()

    def count(text: str) -> int:
        seen.add(text)
        return 0

    check_lengths(story, 10, count)
    return seen


def test_lengths_are_checked_on_every_way_through_the_story() -> None:
    expected = {
        "A cat.shot0:it waves",
        "The sea.shot0:it swims", "The sea.shot1:it dives", "A cat.shot1:it sings",
        "The sea.shot2:it rests", "The city.shot2:it rests",  # only a scene that keeps the memory goes on counting
        "A cave.shot0:it hides", "The sea.shot3:it waits", "The city.shot3:it waits",
        "A cave.shot1:end", "The sea.shot4:end", "The city.shot4:end",
    }  # fmt: skip
    assert full_captions_checked(STORY) == expected
    assert full_captions_checked(Telling(STORY, [WHERE.options[0], WHEN.options[0]])) == expected


def test_a_long_caption_in_an_option_that_is_not_taken_is_refused_with_its_line() -> None:
    long = Option("long", "never", (StoryShot("very " * 30 + "long", line=11),))
    story = Story("s.yaml", "A cat.", (Choice("Where?", (WHERE.options[0], long), 5), StoryShot("end")))
    with pytest.raises(UserError, match=r"s\.yaml, line 11: .* has 32 tokens"):
        check_lengths(Telling(story, [WHERE.options[0]]), limit=24)


def test_a_long_global_caption_of_a_scene_counts_for_its_shots() -> None:
    story = Story(
        "s.yaml", "A cat.", (StoryShot("a b", line=3), Scene("w " * 9, line=4), StoryShot("it waves", line=5))
    )
    check_lengths(story, limit=11)
    with pytest.raises(UserError, match=r"line 5: .* has 11 tokens"):
        check_lengths(story, limit=10)


def test_many_choices_in_a_row_are_checked_quickly() -> None:
    counted = []
    story = Story("s", "A cat.", (WHEN,) * 40 + (StoryShot("end"),))
    check_lengths(story, 100, lambda text: counted.append(text) or 0)  # type: ignore[func-returns-value]
    assert len(counted) < 10_000  # 2 ** 40 ways


def test_a_caption_of_900_words_is_refused_with_its_line_and_length() -> None:
    story = parse_text("A cat.\nit waves\n" + "very " * 899 + "long\n", "s.txt")
    with pytest.raises(UserError, match=r"line 3: the caption of this shot has 901 tokens .* at most 512"):
        check_lengths(story, limit=512)
    check_lengths(parse_text("A cat.\nit waves", "s.txt"), limit=512)


def test_the_models_own_tokenizer_decides_when_there_is_one() -> None:
    story = parse_text("A cat.\nit waves", "s.txt")
    with pytest.raises(UserError, match="20 tokens"):
        check_lengths(story, limit=19, count_tokens=len)
    check_lengths(story, limit=20, count_tokens=len)

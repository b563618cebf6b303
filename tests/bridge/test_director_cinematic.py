"""The cinematic director describes shots as films are described: in full once, in the same words ever after."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shotstream.bridge.director import CastMember, Director, Event, StoryState, shipped_map

FILM = Director(shipped_map("cinematic"))
JUNE = CastMember("june", "June", "a young woman in her twenties with short black hair and a denim jacket")
MARA = CastMember("mara", "Mara", "an older woman in her sixties with curly grey hair and a beige shirt")


def hallway(**said) -> StoryState:
    return FILM.scene(
        StoryState(), cast=(JUNE, MARA), place="in a long hallway", time="at night", mood="tense", **said
    )[0]


def test_the_first_shot_of_a_film():
    direction, _ = FILM.direct(hallway(), Event("Player.Walk", "june", target="the last door"))
    assert direction.caption == (
        "A wide shot of June, a young woman in her twenties with short black hair and a denim jacket, taken from "
        "eye level, in a long hallway, at night. June walks towards the last door. The subject is in the middle "
        "distance, with open space on both sides. The lens is at chest height and wide enough to take in the whole"
        " surroundings. Deep focus keeps everything sharp from the foreground to the background. The camera "
        "follows the movement at an even distance. The mood is tense."
    )


def test_the_insert_and_the_reverse_shot_that_follow():
    state = FILM.direct(hallway(), Event("Player.Walk", "june"))[1]
    insert, state = FILM.direct(state, Event("Player.Use", "june", "opens", "the last door"))
    assert insert.caption == (
        "The camera cuts to an insert shot of the last door, taken from eye level, in a long hallway, at night. "
        "June opens the last door. The thing is in the centre of the frame. The lens is close and a little above, "
        "so that details can be seen. A very shallow depth of field keeps only the thing itself and the hands "
        "sharp. The camera pushes in slowly. The mood is tense."
    )
    reverse, _ = FILM.direct(state, Event("Character.Speak", "mara", target="june"))
    assert reverse.caption.startswith(
        "The camera cuts to a medium shot of Mara, an older woman in her sixties with curly grey hair and a beige "
        "shirt, "
    )
    assert "Mara speaks to June." in reverse.caption


def test_the_global_caption_has_cast_place_and_style():
    _, caption = FILM.scene(
        StoryState(), cast=(JUNE, MARA), place="on a ferry", time="at dawn", style="A hand-drawn film."
    )
    assert caption == (
        "A hand-drawn film. The story takes place on a ferry, at dawn. 2 people are in it. June is a young woman "
        "in her twenties with short black hair and a denim jacket. Mara is an older woman in her sixties with "
        "curly grey hair and a beige shirt. Their looks and clothes never change."
    )


def test_a_hero_is_described_once_in_a_scene_and_named_from_then_on():
    state, captions = hallway(), []
    for _ in range(4):
        direction, state = FILM.direct(state, Event("Player.Act", "june", "waits"))
        captions.append(direction.caption)
    assert [caption.count(JUNE.description) for caption in captions] == [1, 0, 0, 0]
    assert all("of June, taken" in caption for caption in captions[1:])
    state, _ = FILM.scene(state, place="on a roof")
    assert JUNE.description in FILM.direct(state, Event("Player.Act", "june", "waits"))[0].caption


def test_a_prompt_of_ones_own_does_not_count_as_a_description():
    _, state = FILM.prompt(hallway(), "A wide shot of June in the rain.")
    direction, _ = FILM.direct(state, Event("Player.Act", "june", "waits"))
    assert direction.size == "medium"
    assert f"June, {JUNE.description}," in direction.caption


def test_new_clothes_begin_a_scene_and_are_kept():
    state = FILM.direct(hallway(), Event("Player.Act", "june", "waits"))[1]
    looks = "a young woman in a long red coat"
    change, state = FILM.direct(state, Event("Character.Join", "june", params={"looks": looks}))
    assert f"June is {looks}." in change.global_caption
    assert f"June, {looks}," in change.caption
    assert state.member("june").name == "June"


def test_a_shot_without_people_shows_the_place():
    direction, _ = FILM.direct(hallway(), Event("World.View"))
    assert direction.caption.startswith(
        "A wide shot, taken from eye level, in a long hallway, at night. The view is in"
    )
    assert direction.subject == "in a long hallway"


def test_many_words_cost_the_mood_and_the_lens_before_the_cast():
    long = " ".join(["with a scarf"] * 9)
    state = hallway(style="Plain.")
    state, _ = FILM.scene(state, cast=[CastMember("june", "June", f"a woman {long}"), MARA])
    direction, _ = FILM.direct(state, Event("Character.Meet", "june", target="mara"))
    assert f"a woman {long}" in direction.caption
    assert MARA.description in direction.caption
    assert "mood" not in direction.caption
    assert "The lens" not in direction.caption


ACTS = st.sampled_from(["opens", "picks up", "smiles at", "turns away from", "waits near"])


@given(
    st.lists(
        st.builds(
            Event,
            st.sampled_from(["Player.Act", "Character.Speak", "Character.Enter", "Character.Leave", "Other"]),
            st.sampled_from(["june", "mara"]),
            ACTS,
            st.sampled_from(["", "the old wooden box"]),
        ),
        max_size=10,
    ),
    st.integers(0, 11),
)
@settings(max_examples=60, deadline=None)
def test_shot_captions_have_fifty_to_a_hundred_words(events, seed):
    state, _ = FILM.scene(StoryState(seed=seed), cast=(JUNE, MARA), place="in a long hallway", time="at night")
    for event in events:
        direction, state = FILM.direct(state, event)
        assert 50 <= len(direction.caption.split()) <= 100
        assert ".." not in direction.caption
        assert " ," not in direction.caption
        assert direction.caption[0].isupper()
        assert direction.caption.endswith(".")


@pytest.mark.parametrize("size", ["wide", "medium", "close_up", "insert"])
@pytest.mark.parametrize("angle", list(FILM.chart.angles))
@pytest.mark.parametrize("camera", ["static", "pull back", "handheld"])
def test_every_size_angle_and_camera_move_can_be_asked_for(size, angle, camera):
    event = Event("Player.Use", "june", "holds", "a lamp", {"size": size, "angle": angle, "camera": camera})
    direction, _ = FILM.direct(hallway(), event)
    assert direction.size == size
    assert FILM.chart.sizes[size].words in direction.caption
    assert FILM.chart.angles[angle] in direction.caption
    assert FILM.chart.cameras[camera] in direction.caption

"""Which code the model process gives for a caption that it refuses: the error's class decides, never its words."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from shotstream.bridge.model import orders
from shotstream.bridge.model.mock import MockFilm, MockStudio
from shotstream.bridge.model.options import MockOptions
from shotstream.bridge.model.worker import Worker
from shotstream.runtime.captions import EmbeddedCaptions
from shotstream.runtime.errors import CaptionTooLong, UserError


def answer(caption: str) -> orders.NotMade:
    """What a worker with the mock says when it is to make a shot of this caption."""
    said: list[Any] = []
    worker = Worker(MockStudio(MockOptions(load_s=0)), said.append)
    for order in (
        orders.OpenFilm(1, 7, "", b""),
        orders.Make(film=1, ticket=1, slot=0, shot=orders.NewShot(caption)),
        orders.Quit(),
    ):
        worker.put(order)
    worker.run()
    (refused,) = (result for result in said if isinstance(result, orders.NotMade))
    return refused


def test_a_caption_beyond_what_the_model_reads_is_too_long_and_the_message_stays() -> None:
    refused = answer("x" * 2001)
    assert (refused.code, refused.message) == ("text_too_long", "the caption has 2001 characters; the mock reads 2000")


def test_an_empty_caption_is_an_invalid_argument() -> None:
    refused = answer(" ")
    assert (refused.code, refused.message[:32]) == ("invalid_argument", "the caption of a shot is empty; ")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UserError("there is no hero called 'tokens'"), "invalid_argument"),
        (CaptionTooLong("shorten it"), "text_too_long"),
    ],
)
def test_words_in_a_message_decide_nothing(error: UserError, code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def begin(film: MockFilm, shot: orders.NewShot) -> None:
        raise error

    monkeypatch.setattr(MockFilm, "begin", begin)
    refused = answer("a fox")
    assert (refused.code, refused.message) == (code, str(error))


def test_the_runtime_says_it_with_the_same_class() -> None:
    parts: Any = SimpleNamespace(text=SimpleNamespace(tokens=len), config=SimpleNamespace(text_len=4))
    unused: Any = None
    with pytest.raises(CaptionTooLong, match=r"needs 5 tokens .* at most 4; shorten one of them"):
        EmbeddedCaptions(parts, unused, unused).read("a fox")

"""Text that players may have written: shortened, without control characters, and never more than data.

Nothing here knows what the text is for; limits are given by the caller or are those of an event.
"""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Iterable, Mapping

from shotstream.bridge.director.facts import AT, Event, Scalar
from shotstream.runtime.errors import UserError

MAX_FIELD = 200
"""Characters of one field of an event; what is longer is cut."""
MAX_DESCRIPTION = 600
"""Characters of a cast member's description, a place, a style; what is longer is refused."""
MAX_CAPTION_BYTES = 4096
"""UTF-8 bytes of a caption; what is longer is refused."""
MAX_PARAMS, MAX_TAGS, MAX_CAST = 32, 16, 8
MAX_NUMBER = 2**53
"""Whole numbers beyond it do not survive every client's arithmetic."""

KIND = re.compile(r"[A-Za-z0-9_-]{1,64}(\.[A-Za-z0-9_-]{1,64}){0,15}")
KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,63}")
_UNSEEN = frozenset({"Cc", "Cf", "Cs", "Co", "Cn"})


def without_controls(text: str) -> str:
    """The text without control, format, private and unassigned characters; line breaks and tabs become spaces."""
    return "".join(c if unicodedata.category(c) not in _UNSEEN else " " if c.isspace() else "" for c in text)


def clean(text: str, limit: int = MAX_FIELD) -> str:
    """One line of at most `limit` characters: composed (NFC), no control characters, single spaces."""
    # Cut twice: before the work, so that it is bounded, and after composing, which is what counts.
    one_line = " ".join(without_controls(text[: 4 * limit]).split())
    return unicodedata.normalize("NFC", one_line)[:limit].rstrip()


def clean_within(text: str, what: str, limit: int = MAX_DESCRIPTION) -> str:
    """As `clean`, but text that is too long is refused: a description without its end is another hero."""
    if not isinstance(text, str):
        raise UserError(f"{what} must be text")
    if len(text) > limit:
        raise UserError(f"{what} has {len(text)} characters; write at most {limit}")
    return clean(text, limit)


def checked_caption(text: str, what: str) -> str:
    """A caption that somebody wrote: as it is but for control characters; UserError if empty or over 4096 bytes."""
    if not isinstance(text, str):
        raise UserError(f"{what} must be text")
    if len(text.encode("utf-8", "replace")) > MAX_CAPTION_BYTES:
        raise UserError(f"{what} is longer than {MAX_CAPTION_BYTES} bytes; shorten it")
    caption = without_controls(text).strip()
    if not caption:
        raise UserError(f"{what} is empty")
    return caption


def clean_event(event: Event) -> Event:
    """The event with every text cleaned and cut to 200 characters.

    Raises UserError for a kind that is not dotted words, for an unknown `at`, too many parameters or tags, and
    parameters that are no text, number or truth value."""
    if not isinstance(event.kind, str) or not KIND.fullmatch(event.kind):
        shown = clean(str(event.kind), 40)
        raise UserError(f"'{shown}' is no kind of event; write words joined by dots, as in Story.Act1.DoorOpened")
    if event.at not in AT:
        raise UserError(f"event {event.kind}: at must be {listed(AT, 'or')}, not '{clean(str(event.at), 40)}'")
    if len(event.params) > MAX_PARAMS:
        raise UserError(f"event {event.kind} has {len(event.params)} params; at most {MAX_PARAMS} are read")
    if len(event.tags) > MAX_TAGS:
        raise UserError(f"event {event.kind} has {len(event.tags)} tags; at most {MAX_TAGS} are read")
    for part in ("actor", "action", "target"):
        if not isinstance(getattr(event, part), str):
            raise UserError(f"event {event.kind}: {part} must be text")
    if not all(isinstance(tag, str) for tag in event.tags):
        raise UserError(f"event {event.kind}: tags must be text")
    return Event(
        kind=event.kind,
        actor=clean(event.actor),
        action=clean(event.action),
        target=clean(event.target),
        params=_clean_params(event.kind, event.params),
        tags=tuple(clean(tag, 64) for tag in event.tags),
        at=event.at,
    )


def _clean_params(kind: str, params: Mapping[str, Scalar]) -> dict[str, Scalar]:
    found: dict[str, Scalar] = {}
    for key, value in params.items():
        name = clean(str(key), 64)
        if isinstance(value, str):
            found[name] = clean(value)
        elif isinstance(value, bool) or (isinstance(value, int | float) and abs(value) <= MAX_NUMBER):
            found[name] = value
        else:  # also not-a-number, which no comparison accepts
            raise UserError(f"event {kind}: the param '{name}' must be text, true or false, or a number up to 2^53")
    return found


def listed(words: Iterable[str], last: str = "and") -> str:
    """The words with commas, and `last` before the last one: "a, b and c"."""
    words = list(words)
    return f" {last} ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else "".join(words)


def nearest(word: str, known: Iterable[str], limit: int = 12) -> str:
    """The known words that look like `word`, else the first `limit` of them: the end of an error message."""
    known = list(dict.fromkeys(known))
    lower = {each.lower(): each for each in known}
    close = [lower[each] for each in difflib.get_close_matches(word.lower(), lower, n=3)]
    if close:
        return f"the nearest are {listed(close)}" if len(close) > 1 else f"the nearest is {close[0]}"
    shown = known if len(known) <= limit else [*known[:limit], "..."]
    return f"known are {listed(shown)}" if known else "none is known"


def article(words: str) -> str:
    """The words with "a" or "an" in front, unless they begin with an article."""
    if not words or words.split()[0].lower() in ("a", "an", "the"):
        return words
    return f"{'an' if words[0].lower() in 'aeiou' else 'a'} {words}"


def capital(words: str) -> str:
    """The words with a capital first letter."""
    return words[:1].upper() + words[1:]


def sentence(words: str) -> str:
    """The words with a capital first letter and a full stop, unless they end in a stop already."""
    words = words.strip()
    return capital(words) + ("" if words.endswith((".", "!", "?")) else ".") if words else ""

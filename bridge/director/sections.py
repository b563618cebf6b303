"""Reading yaml piece by piece: every key is asked for by name and type, and what is left over was a slip of the pen.

Knows no event maps. Errors begin with the file and the place in it: "mine.yaml: rules[2].at".
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import yaml

from shotstream.bridge.director.text import clean_within, listed, nearest
from shotstream.runtime.errors import UserError

T = TypeVar("T")
MAX_TEXT = 4000
"""Characters of one text in a map."""


class _Loader(yaml.SafeLoader):
    """Yaml's safe loader, which takes the last of two equal keys; this one refuses the second."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.value in seen:
                mark = key.start_mark
                raise yaml.MarkedYAMLError(problem=f"the key '{key.value}' appears twice", problem_mark=mark)
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)


def parse_yaml(text: str, name: str) -> dict[str, Any]:
    """The mapping that a file holds; UserError with the line for what is not yaml, and for a key written twice."""
    try:
        data = yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{name}, line {mark.line + 1}" if mark else name
        raise UserError(f"{where}: this is not valid yaml: {error.problem or error.context}") from None
    except (yaml.YAMLError, RecursionError, ValueError, TypeError) as error:
        raise UserError(f"{name} is not valid yaml: {' '.join(str(error).split())[:200]}") from None
    if not isinstance(data, dict):
        raise UserError(f"{name} is no event map; it needs keys such as rules")
    return data


class Section:
    """One mapping of the file. Methods take a key out of it; `done` refuses what nobody asked for."""

    def __init__(self, where: str, data: object) -> None:
        if not isinstance(data, Mapping):
            raise UserError(f"{where} must have keys, not {_kind(data)}")
        if odd := [key for key in data if not isinstance(key, str)]:
            raise UserError(f"{where}: the key {odd[0]!r} must be text; put it in quotes")
        self.where = where
        self._data = dict(data)
        self._asked: list[str] = []

    def __contains__(self, key: str) -> bool:
        return key in self._data

    def at(self, key: str) -> str:
        """Where a key stands, for errors."""
        return f"{self.where}.{key}" if ": " in self.where else f"{self.where}: {key}"

    def keys(self) -> tuple[str, ...]:
        """All keys, in the order written."""
        return tuple(self._data)

    def raw(self, key: str) -> Any:
        """The value as yaml gave it; None if it is missing."""
        self._asked.append(key)
        return self._data.get(key)

    def _get(self, key: str, default: T | None, read: Callable[[str, Any], T]) -> T:
        self._asked.append(key)
        if key in self._data:
            return read(self.at(key), self._data[key])
        if default is None:
            raise UserError(f"{self.where} needs the key '{key}'")
        return default

    def text(self, key: str, default: str | None = None) -> str:
        """One text, cleaned; never empty unless the default is taken or is itself empty."""
        return self._get(key, default, lambda where, value: _text(where, value, default == ""))

    def texts(self, key: str, default: tuple[str, ...] | None = None) -> tuple[str, ...]:
        """A list of texts, or one text, which stands for a list of one."""
        return self._get(key, default, _texts)

    def number(self, key: str, low: int, high: int, default: int | None = None) -> int:
        """A whole number from low to high."""

        def read(where: str, value: object) -> int:
            if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
                raise UserError(f"{where} must be a whole number from {low} to {high}, not {_kind(value)}")
            return value

        return self._get(key, default, read)

    def flag(self, key: str, default: bool | None = None) -> bool:
        """true or false."""

        def read(where: str, value: object) -> bool:
            if not isinstance(value, bool):
                raise UserError(f"{where} must be true or false, not {_kind(value)}")
            return value

        return self._get(key, default, read)

    def choice(self, key: str, known: Iterable[str], default: str | None = None) -> str:
        """One of the known words."""
        known = list(known)
        return self._get(key, default, lambda where, value: one_of(where, _text(where, value), known))

    def choices(self, key: str, known: Iterable[str], default: tuple[str, ...] | None = None) -> tuple[str, ...]:
        """A list of known words."""
        known = list(known)
        return tuple(one_of(self.at(key), word, known) for word in self.texts(key, default))

    def table(self, key: str, empty: bool = False) -> dict[str, str]:
        """Name to text; texts may be empty if `empty`. A missing key is an empty table."""
        part = self.section(key)
        return {name: _text(part.at(name), part.raw(name), empty) for name in part.keys()}  # noqa: SIM118

    def section(self, key: str) -> Section:
        """A mapping inside this one; a missing key is an empty mapping."""
        return Section(self.at(key), self._get(key, {}, lambda _, value: value))

    def items(self, key: str) -> tuple[tuple[str, Any], ...]:
        """The entries of a list, each with where it stands: "rules[0]". A missing key is an empty list."""
        values: Any = self._get(key, [], lambda _, value: value)
        if not isinstance(values, list):
            raise UserError(f"{self.at(key)} must be a list, not {_kind(values)}")
        return tuple((f"{self.at(key)}[{number}]", value) for number, value in enumerate(values))

    def done(self) -> None:
        """Raise UserError for a key that nobody asked for."""
        for key in self._data:
            if key not in self._asked:
                raise UserError(f"{self.where}: unknown key '{key}'; {nearest(key, self._asked, 30)}")


def one_of(where: str, word: str, known: Iterable[str]) -> str:
    """The word, if it is known."""
    known = list(known)
    if word not in known:
        raise UserError(f"{where} must be {listed(known, 'or')}, not '{word}'")
    return word


def _text(where: str, value: object, empty: bool = False) -> str:
    if not isinstance(value, str):
        hint = "; put it in quotes" if isinstance(value, bool | int | float) else ""
        raise UserError(f"{where} must be text, not {_kind(value)}{hint}")
    text = clean_within(value, where, MAX_TEXT)
    if not text and not empty:
        raise UserError(f"{where} is empty")
    return text


def _texts(where: str, value: object) -> tuple[str, ...]:
    values = value if isinstance(value, list) else [value]
    return tuple(_text(f"{where}[{number}]", each) for number, each in enumerate(values))


def _kind(value: object) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, bool | int | float):
        return str(value)[:40].lower() if isinstance(value, bool) else str(value)[:40]
    if isinstance(value, str):
        return f"'{value[:40]}'"
    return "a list" if isinstance(value, list) else "a mapping" if isinstance(value, Mapping) else type(value).__name__

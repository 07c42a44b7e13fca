"""YAML files as trees of text that remember their lines; nothing is converted and nothing is constructed.

Only what a settings file needs is accepted: one document of mappings, lists and scalars. Tags, anchors and
aliases (which make small files expand without end), duplicate keys, deep nesting and big files are refused.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NoReturn

import yaml

from config.problems import PROBLEMS_MAX, ConfigError, Problem, shown

BYTES_MAX: Final = 1 << 20
DEPTH_MAX: Final = 16

# libyaml's parser gives the same events 20 times faster; PyYAML is sometimes installed without it.
LOADER: Final[Any] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

_NOT_TEXT = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_TAG = "tag:yaml.org,2002:"
_WORDS = {
    "str": "text", "int": "a number", "float": "a number", "bool": "a truth value", "null": "nothing",
    "timestamp": "a time", "merge": "a merge key", "value": "a value key",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Scalar:
    """One value as it is written, and what YAML 1.1 takes it for: str, int, float, bool, null, timestamp."""

    line: int
    text: str
    tag: str

    def describe(self) -> str:
        """What this is, for a message: `'no', a truth value`."""
        return _WORDS["null"] if self.tag == "null" else f"{shown(self.text)}, {_WORDS[self.tag]}"


@dataclass(frozen=True, slots=True)
class Entry:
    """A key of a mapping and its value; the key is a string, always."""

    line: int
    value: Node


@dataclass(frozen=True, slots=True)
class Mapping:
    """Keys and values in the order of the file."""

    line: int
    entries: dict[str, Entry]

    def describe(self) -> str:
        return "a mapping"


@dataclass(frozen=True, slots=True)
class Sequence:
    """A list."""

    line: int
    items: list[Node]

    def describe(self) -> str:
        return "a list"


Node = Scalar | Mapping | Sequence


def read_yaml(path: Path, problems: list[Problem]) -> Node:
    """The document in a file; an empty one is an empty mapping.

    What is refused but does not keep the rest from being read is left out and added to `problems`.
    Raises: ConfigError with every fault found, when there is no telling what the rest means.
    """
    return parse_yaml(read_bytes(path), str(path), problems)


def read_bytes(path: Path) -> bytes:
    """What is in a file, one byte more than BYTES_MAX at most. Raises: ConfigError."""
    try:
        with path.open("rb") as file:
            return file.read(BYTES_MAX + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError([Problem(str(path), 0, "", None, f"cannot be read: {reason}")]) from error


def parse_yaml(content: bytes, name: str, problems: list[Problem]) -> Node:
    """As `read_yaml`, of `content`, called `name` in messages."""
    return _Builder(name, problems).build(_decode(content, name))


def _decode(content: bytes, name: str) -> str:
    def fault(line: int, message: str) -> ConfigError:
        return ConfigError([Problem(name, line, "", None, message)])

    if len(content) > BYTES_MAX:
        raise fault(0, f"is larger than {BYTES_MAX} bytes")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise fault(line, f"is not UTF-8 text: byte 0x{content[error.start]:02x} cannot stand here") from None
    if odd := _NOT_TEXT.search(text):
        line = text.count("\n", 0, odd.start()) + 1
        raise fault(line, f"holds the character U+{ord(odd[0]):04X}, which is not allowed in YAML")
    return text


@dataclass(slots=True)
class _OpenMapping:
    """A mapping whose end has not come yet."""

    node: Mapping
    path: tuple[str, ...]
    key: Scalar | None = None
    keep: bool = True
    """False: the value to come belongs to a refused key and is read only to find its faults."""

    def here(self) -> tuple[str, ...]:
        return self.path if self.key is None else (*self.path, self.key.text)

    def add(self, value: Node) -> None:
        if self.key is not None and self.keep:
            self.node.entries[self.key.text] = Entry(self.key.line, value)
        self.key = None


@dataclass(slots=True)
class _OpenSequence:
    """A list whose end has not come yet."""

    node: Sequence
    path: tuple[str, ...]

    def here(self) -> tuple[str, ...]:
        return (*self.path, str(len(self.node.items)))

    def add(self, value: Node) -> None:
        self.node.items.append(value)


class _Builder:
    """Makes the tree from the parser's events, without recursion, so that no input is too deep for it."""

    def __init__(self, name: str, problems: list[Problem]) -> None:
        self._name = name
        self._problems = problems
        self._stack: list[_OpenMapping | _OpenSequence] = []
        self._root: Node | None = None
        self._started = False

    def build(self, text: str) -> Node:
        loader = LOADER(text)
        try:
            while loader.check_event():
                self._take(loader, loader.get_event())
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            detail = ", ".join(part for part in (error.context, error.problem) if part)
            self._stop(mark.line + 1 if mark else 0, f"is not YAML: {detail}")
        except (yaml.YAMLError, ValueError) as error:
            self._stop(0, f"is not YAML: {error}")
        finally:
            loader.dispose()
        return Mapping(1, {}) if self._root is None else self._root

    def _stop(self, line: int, message: str) -> NoReturn:
        self._refuse(line, message)
        raise ConfigError(self._problems) from None

    def _refuse(self, line: int, message: str, path: tuple[str, ...] | None = None) -> None:
        here = self._stack[-1].here() if self._stack else ()
        self._problems.append(Problem(self._name, line, ".".join(here if path is None else path), None, message))
        if len(self._problems) >= PROBLEMS_MAX:
            raise ConfigError(self._problems)

    def _take(self, loader: Any, event: Any) -> None:
        line = event.start_mark.line + 1
        if isinstance(event, yaml.DocumentStartEvent):
            if self._started:
                self._stop(line, "starts a second document; write one document to a file")
            self._started = True
        if isinstance(event, yaml.AliasEvent):
            self._stop(line, f"alias *{event.anchor} is not allowed; write the value out")
        if isinstance(event, yaml.NodeEvent):
            self._check_plain(event, line)
        if isinstance(event, yaml.ScalarEvent):
            tag = loader.resolve(yaml.ScalarNode, event.value, event.implicit).removeprefix(_TAG)
            self._take_scalar(Scalar(line, event.value, tag))
        elif isinstance(event, (yaml.MappingStartEvent, yaml.SequenceStartEvent)):
            self._open(isinstance(event, yaml.MappingStartEvent), line)
        elif isinstance(event, (yaml.MappingEndEvent, yaml.SequenceEndEvent)):
            self._add(self._stack.pop().node)

    def _check_plain(self, event: Any, line: int) -> None:
        if event.anchor is not None:
            self._refuse(line, f"anchor &{event.anchor} is not allowed; write the value where it is needed")
        if event.tag is not None:
            self._refuse(line, f"tag {event.tag} is not allowed; write plain values")

    def _awaiting_key(self) -> _OpenMapping | None:
        top = self._stack[-1] if self._stack else None
        return top if isinstance(top, _OpenMapping) and top.key is None else None

    def _take_scalar(self, scalar: Scalar) -> None:
        if (mapping := self._awaiting_key()) is not None:
            self._take_key(mapping, scalar)
        # A document of nothing but comments is one empty scalar.
        elif self._stack or scalar.text:
            self._add(scalar)

    def _take_key(self, mapping: _OpenMapping, key: Scalar) -> None:
        first = mapping.node.entries.get(key.text)
        if key.tag != "str" and (number := _before_comma(mapping, key)) is not None:
            self._refuse(key.line, f"a number has a point, no comma: write {number.text}.{key.text}")
        elif key.tag != "str":
            self._refuse(
                key.line,
                f'the key {shown(key.text)} would be read as {_WORDS[key.tag]}; quote it: "{key.text}"',
            )
        elif first is not None:
            self._refuse(
                key.line,
                f"is given twice, in line {first.line} and here; keep one",
                (*mapping.path, key.text),
            )
        mapping.keep = key.tag == "str" and first is None
        mapping.key = key

    def _open(self, mapping: bool, line: int) -> None:
        if self._awaiting_key() is not None:
            self._stop(line, "a mapping or a list cannot be a key; write text")
        if len(self._stack) >= DEPTH_MAX:
            self._stop(line, f"is nested deeper than {DEPTH_MAX} levels")
        path = self._stack[-1].here() if self._stack else ()
        if mapping:
            self._stack.append(_OpenMapping(Mapping(line, {}), path))
        else:
            self._stack.append(_OpenSequence(Sequence(line, []), path))

    def _add(self, node: Node) -> None:
        if self._stack:
            self._stack[-1].add(node)
        else:
            self._root = node


def _before_comma(mapping: _OpenMapping, key: Scalar) -> Scalar | None:
    # {credits_per_hour: 13,5} is, in YAML, 13 and then a key 5.
    last = next(reversed(mapping.node.entries.values()), None)
    if last is None or not isinstance(last.value, Scalar) or last.value.line != key.line:
        return None
    return last.value if last.value.text.isdigit() and key.text.isdigit() else None

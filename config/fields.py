"""How dataclasses are read from YAML: each field says in its metadata how its key is read and what it means.

    interval_seconds: float = field(default=15.0, metadata=setting(seconds, "How often sources are asked."))

`read_section` reads a mapping by these; `config.reference` writes the documentation from the same metadata.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from typing import Any, Final, Generic, TypeVar, cast

from config import yaml_nodes
from config.problems import PROBLEMS_MAX, ConfigError, Problem, did_you_mean, nearest, shown
from config.yaml_nodes import Node, Scalar, Sequence

T = TypeVar("T")
U = TypeVar("U")
_METADATA: Final = "config"


class Unusable(Exception):
    """The value cannot be used; the reason is among the problems already."""


class Refused(Exception):
    """The value cannot be used; the text says what is wrong and what would be right."""


@dataclass(frozen=True, slots=True)
class File:
    """A file that is being read: its name in messages, the environment, the problems found so far."""

    name: str
    environ: Mapping[str, str]
    problems: list[Problem]

    def finish(self) -> None:
        """Raises: ConfigError if there are problems."""
        if self.problems:
            raise ConfigError(self.problems)


@dataclass(frozen=True, slots=True)
class At:
    """A value and where it stands."""

    file: File
    path: tuple[str, ...]
    node: Node
    secret: bool = False

    def refuse(self, message: str, line: int | None = None) -> None:
        """Adds a problem at this value (or at another line of it).

        Raises: ConfigError once there are so many that nobody reads on.
        """
        hidden = self.secret or not isinstance(self.node, Scalar)
        value = None if hidden else cast(Scalar, self.node).text
        place = self.node.line if line is None else line
        self.file.problems.append(Problem(self.file.name, place, ".".join(self.path), value, message))
        if len(self.file.problems) >= PROBLEMS_MAX:
            self.file.finish()

    def describe(self) -> str:
        """What stands here, for a message; never what is secret."""
        return "another value" if self.secret else self.node.describe()

    def scalar(self, expected: str) -> Scalar:
        """The scalar here. Raises: Refused for a mapping, a list or nothing."""
        if not isinstance(self.node, Scalar) or self.node.tag == "null":
            raise Refused(f"is {self.describe()}; expected {expected}")
        return self.node

    def entries(self, expected: str) -> dict[str, At]:
        """The values of the mapping here by key. Raises: Unusable."""
        if not isinstance(self.node, yaml_nodes.Mapping):
            self.refuse(f"is {self.describe()}; expected {expected}")
            raise Unusable
        return {
            name: At(self.file, (*self.path, name), entry.value)
            for name, entry in self.node.entries.items()
        }  # fmt: skip

    def known_entries(self, names: list[str], expected: str) -> dict[str, At]:
        """The values of the mapping here by key; a key that is not in `names` is reported and left out.

        Raises: Unusable when it is no mapping.
        """
        entries = self.entries(expected)
        for name in [name for name in entries if name not in names]:
            self.refuse(f"unknown key {shown(name)}{did_you_mean(name, names)}", self.line_of(name))
            del entries[name]
        return entries

    def line_of(self, name: str) -> int:
        """The line of a key of the mapping here."""
        entry = self.node.entries.get(name) if isinstance(self.node, yaml_nodes.Mapping) else None
        return self.node.line if entry is None else entry.line


@dataclass(frozen=True, slots=True)
class Reader(Generic[T]):
    """Makes a value of what stands at a key. `shape` is what to write there, in words."""

    shape: str
    read: Callable[[At], T]
    """Raises: Refused, or Unusable when the problems are reported already."""
    section: type | None = None
    """The dataclass whose keys may stand here, for the reference."""
    secret: bool = False
    forms: tuple[str, ...] = ("",)
    """Suffixes of the keys that give this field (`token`, `token_file`); `read` gets the one that is there."""

    def __call__(self, at: At) -> T:
        """Raises: Unusable, with the problem reported."""
        try:
            return self.read(At(at.file, at.path, at.node, self.secret))
        except Refused as error:
            At(at.file, at.path, at.node, self.secret).refuse(str(error))
            raise Unusable from None

    def then(self, make: Callable[[T], U]) -> Reader[U]:
        """The same, made into something else; a ValueError of `make` is refused with its text."""

        def read(at: At) -> U:
            value = self.read(at)
            try:
                return make(value)
            except ValueError as error:
                raise Refused(str(error)) from None

        return Reader(self.shape, read, self.section, self.secret, self.forms)


@dataclass(frozen=True, slots=True)
class Key:
    """What a dataclass field knows of its key."""

    reader: Reader[Any]
    meaning: str
    name: str | None = None
    """The key where it is not called as the field."""
    absent: str | None = None
    """What holds without the key, in words, where the default does not say it."""

    def names(self, item: Field[Any]) -> list[str]:
        """The keys in the file by which this field can be given."""
        return [(self.name or item.name) + form for form in self.reader.forms]


def setting(reader: Reader[Any], meaning: str, name: str | None = None, absent: str | None = None) -> dict[str, Key]:
    """Metadata for `dataclasses.field`."""
    return {_METADATA: Key(reader, meaning, name, absent)}


def keys_of(section: type) -> list[tuple[Field[Any], Key]]:
    """The fields of a dataclass that are read from the file, in order."""
    if not is_dataclass(section):
        raise TypeError(f"{section} is not a dataclass")
    return [(item, item.metadata[_METADATA]) for item in fields(section) if _METADATA in item.metadata]


def read_section(
    at: At, section: type[T], ignore: tuple[str, ...] = (), given: Mapping[str, object] | None = None
) -> T:
    """The mapping at `at` as a dataclass; keys of `ignore` are someone else's to read, fields of `given` are known.

    Raises: Unusable when something in it is not usable; all of it was looked at, then.
    """
    found_before = len(at.file.problems)
    specs = keys_of(section)
    names = [name for item, spec in specs for name in spec.names(item)]
    entries = at.known_entries([*ignore, *names], "a mapping of settings")
    values: dict[str, Any] = dict(given or {})
    for item, spec in specs:
        present = [name for name in spec.names(item) if name in entries]
        if len(present) > 1:
            at.refuse(f"has {' and '.join(present)}; give one of them", at.line_of(present[1]))
        elif present:
            with suppress(Unusable):
                values[item.name] = spec.reader(entries[present[0]])
        elif item.default is MISSING and item.default_factory is MISSING:
            at.refuse(f"lacks the key {' or '.join(spec.names(item))}: {spec.reader.shape}")
    if len(at.file.problems) > found_before:
        raise Unusable
    try:
        return section(**values)
    except Refused as error:
        at.refuse(str(error))
        raise Unusable from None


def section(cls: type[T]) -> Reader[T]:
    """A mapping that is read as the dataclass."""
    return Reader("section", lambda at: read_section(at, cls), section=cls)


def choice(*options: str) -> Reader[str]:
    """One of a few words. `off` and `on` are words here, whatever YAML 1.1 takes them for."""
    shape = " or ".join(f"`{option}`" for option in options)

    def read(at: At) -> str:
        text = at.scalar(f"one of {', '.join(options)}").text
        if text in options:
            return text
        # Stricter than for names: `refuse` is not to be answered with `free`.
        match = nearest(text, options, 0.7)
        hint = f"did you mean '{match}'?" if match else f"expected one of {', '.join(options)}"
        raise Refused(f"is {shown(text)}; {hint}")

    return Reader(shape, read)


def list_of(reader: Reader[T]) -> Reader[tuple[T, ...]]:
    """A list of values."""

    def read(at: At) -> tuple[T, ...]:
        if not isinstance(at.node, Sequence):
            raise Refused(f"is {at.describe()}; expected a list: [{reader.shape}, ...]")
        values: list[T] = []
        for number, node in enumerate(at.node.items):
            with suppress(Unusable):
                values.append(reader(At(at.file, (*at.path, str(number)), node)))
        if len(values) < len(at.node.items):
            raise Unusable
        return tuple(values)

    return Reader(f"list of {reader.shape}s", read, section=reader.section)


def map_of(reader: Reader[T], of: str) -> Reader[dict[str, T]]:
    """A mapping from names of something to values."""

    def read(at: At) -> dict[str, T]:
        entries = at.entries(f"a mapping {{{of}: {reader.shape}}}")
        values: dict[str, T] = {}
        for name, value in entries.items():
            with suppress(Unusable):
                values[name] = reader(value)
        if len(values) < len(entries):
            raise Unusable
        return values

    return Reader(f"mapping of {of} to {reader.shape}", read, section=reader.section)

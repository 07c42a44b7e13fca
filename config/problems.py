"""What is wrong in a configuration file: where, which key, which value, and what would be right."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Final

from ledger.errors import CreditsError

PROBLEMS_MAX: Final = 100
"""Nobody reads on after so many."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One fault of a file. `line` counts from 1, 0: the whole file. `key` is a dotted path, "" at the top."""

    file: str
    line: int
    key: str
    value: str | None
    """The offending text as it stands in the file; None where there is none, or it is secret."""
    message: str

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.line else self.file
        key = f"{_on_one_line(self.key)}: " if self.key else ""
        return f"{place}: {key}{self.message}"


class ConfigError(CreditsError):
    """The configuration is not usable."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(sorted(problems, key=lambda problem: (problem.file, problem.line)))
        super().__init__("\n".join(str(problem) for problem in self.problems))


def nearest(word: str, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The known word that `word` most likely was meant to be, if any is near."""
    # Very long words cannot be near misses of names, and comparing them is quadratic.
    matches = get_close_matches(word, known, n=1, cutoff=cutoff) if len(word) <= 253 else []
    return matches[0] if matches else None


def near_miss(name: str, known: Iterable[str], cutoff: float = 0.75) -> str | None:
    """The known name that a new one was probably meant to be. Names that differ in digits (a100-2, a100-4) are
    siblings."""
    digits = _digits(name)
    return nearest(name, [other for other in known if _digits(other) == digits], cutoff)


def _digits(name: str) -> str:
    return "".join(letter for letter in name if letter.isdigit())


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?`, or else `; known are a, b, c`."""
    names = list(known)
    match = nearest(word, names)
    if match is not None:
        return f"; did you mean '{match}'?"
    return f"; known are {', '.join(names)}" if names else ""


def _on_one_line(text: str) -> str:
    return text if text.isprintable() else repr(text)


def shown(text: str) -> str:
    """Text from a file as it may stand in a message: quoted, on one line, not endless."""
    return repr(text if len(text) <= 80 else text[:77] + "...")

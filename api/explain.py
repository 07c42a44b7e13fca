"""What is wrong with a body, for its author: which field it is, and what would be right."""

from __future__ import annotations

import re
from difflib import get_close_matches
from typing import Any, Final

from msgspec import inspect

_UNKNOWN: Final = re.compile(r"unknown field `(.*)`", re.DOTALL)
_MISSING: Final = re.compile(r"Object missing required field `(.*)`", re.DOTALL)
_TYPES: Final = re.compile(r"Expected `([a-z |]+)`, got `([a-z]+)`")
_WHERE: Final = re.compile(r" - at `\$\.?(.*)`$", re.DOTALL)
_STEP: Final = re.compile(r"([^.\[\]]+)|(\[[^\]]*\])")
_SHOWN: Final = 80
_JSON: Final = {
    "str": "a text", "int": "a whole number", "float": "a number", "bool": "true or false", "object": "an object",
    "array": "a list",
}  # fmt: skip
"""The decoder's names of types -> what JSON's are to people."""


def explain(message: str, kind: type) -> str:
    """A message of msgspec's decoder of `kind`, a struct, in words that name the field and the remedy."""
    where = _WHERE.search(message)
    place = where[1] if where is not None else ""
    wrong = _WHERE.sub("", message)
    unknown = _UNKNOWN.search(wrong)
    if unknown is not None:
        known = _fields(inspect.type_info(kind), place)
        near = get_close_matches(unknown[1][:_SHOWN], known, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
        return f"{unknown[1][:_SHOWN]!r} is not a field of {place or 'this'}; {hint}"
    missing = _MISSING.fullmatch(wrong)
    if missing is not None:
        return f"{place}.{missing[1]}: is needed" if place else f"{missing[1]}: is needed"
    types = _TYPES.fullmatch(wrong)
    if types is not None:
        expected = " or ".join(_JSON.get(one, one) for one in types[1].split(" | "))
        return f"{place or 'the body'}: expected {expected}, not {_JSON.get(types[2], types[2])}"
    return f"{place}: {wrong}" if place else wrong


def _fields(info: Any, place: str) -> list[str]:
    """Names of the fields of the struct at a place of another."""
    for name, _ in _STEP.findall(place):
        info = _struct(info)
        if name and info is not None:
            info = next((one.type for one in info.fields if one.encode_name == name), None)
    found = _struct(info)
    return [] if found is None else [one.encode_name for one in found.fields]


def _struct(info: Any) -> inspect.StructType | None:
    if isinstance(info, inspect.UnionType):
        return next((one for one in map(_struct, info.types) if one is not None), None)
    if isinstance(info, inspect.ListType | inspect.VarTupleType):
        return _struct(info.item_type)
    if isinstance(info, inspect.Metadata):
        return _struct(info.type)
    return info if isinstance(info, inspect.StructType) else None

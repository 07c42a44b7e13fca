"""Words of the API, with their limits as JSON Schema says them. What is decoded is checked where it is read."""

from __future__ import annotations

from typing import Annotated, Any, Final, Generic, Literal, TypeVar

from msgspec import Meta, Raw, Struct, field

T = TypeVar("T")


def said(**schema: Any) -> Meta:
    """Limits that are described, not enforced by decoding: the readers name the field and the remedy."""
    return Meta(extra_json_schema=schema)


NAME_PATTERN: Final = r"^[^\u0000-\u001F\u007F-\u009F]+$"
Name = Annotated[str, said(minLength=1, maxLength=253, pattern=NAME_PATTERN, examples=["acme"])]
Credits = Annotated[
    str,
    said(
        description="Credits, as a decimal with at most 6 digits after the point.",
        pattern=r"^-?(0|[1-9][0-9]*)(\.[0-9]{1,6})?$",
        examples=["12.5"],
    ),
]
Decimals = Annotated[str, said(pattern=r"^-?(0|[1-9][0-9]*)(\.[0-9]+)?$", examples=["0.75"])]
Time = Annotated[
    str,
    said(format="date-time", pattern="Z$", description="RFC 3339, in UTC.", examples=["2026-11-22T10:00:00Z"]),
]
AskedTime = Annotated[str, said(format="date-time", examples=["2026-12-01T00:00:00Z"])]
"""RFC 3339 with any offset, from 1970 to 2255."""
AskedCredits = Annotated[
    Raw,
    said(
        type=["string", "number"],
        description="More than 0: a decimal as text (best), or a JSON number, which is read as a decimal too.",
        pattern=r"^(0|[1-9][0-9]{0,9})(\.[0-9]{1,6})?$",
        exclusiveMinimum=0,
        maximum=9_007_199_254,
        examples=["100", "0.5"],
    ),
]
_LIMIT: Final[dict[str, Any]] = {
    "description": "A decimal as text (best), or a JSON number. 0 is zero.",
    "pattern": r"^(0|[1-9][0-9]{0,9})(\.[0-9]{1,6})?$",
    "minimum": 0,
    "maximum": 9_007_199_254,
    "examples": ["250"],
}
AskedLimit = Annotated[Raw, said(type=["string", "number"], **_LIMIT)]
MaybeLimit = Annotated[Raw, said(type=["string", "number", "null"], **_LIMIT)]
"""With `msgspec.Raw` as its default factory; see `is_given`."""
AskedChange = Annotated[
    Raw,
    said(
        type=["string", "number"],
        description="Not 0; below 0 takes back. A decimal as text (best), or a JSON number.",
        pattern=r"^-?(0|[1-9][0-9]{0,9})(\.[0-9]{1,6})?$",
        minimum=-9_007_199_254,
        maximum=9_007_199_254,
        examples=["-900", "0.5"],
    ),
]
HoldId = Annotated[str, said(minLength=1, maxLength=200, examples=["acme.01JD3Z"])]
Period = Annotated[str, said(enum=["day", "week", "month", "total"])]
Weekday = Annotated[str, said(enum=["monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"])]
Zone = Annotated[str, said(maxLength=64, examples=["Europe/Berlin"], description="A name of the IANA database.")]
Stage = Literal["ok", "warn", "block", "grace", "suspend", "stop"]
IdempotencyKeyText = Annotated[
    str,
    said(
        description="Names this posting for ever: the same body gets the same answer again, another body a 409.",
        minLength=1,
        maxLength=255,
        pattern="^[!-~]+$",
        examples=["invoice-2026-11"],
    ),
]


def is_given(asked: Raw) -> bool:
    """Whether a field that may be left out says something."""
    return bytes(asked) not in (b"", b"null")


class IdempotencyKey(Struct):
    """Header of everything that moves credits."""

    key: IdempotencyKeyText = field(name="Idempotency-Key")


class Paging(Struct):
    """Parameters of a list."""

    limit: Annotated[int, said(minimum=1, maximum=1000)] = 100
    cursor: Annotated[str, said(description="`next` of the page before; none: from the start.")] | None = None


class Ordered(Paging):
    """Parameters of a list that is in the order of time."""

    order: Annotated[str, said(enum=["asc", "desc"], description="`desc`: the newest first.")] = "asc"


class Page(Struct, Generic[T], forbid_unknown_fields=True):
    """One page of a list; `next` is the `cursor` of the page after it, null on the last."""

    items: list[T]
    next: str | None

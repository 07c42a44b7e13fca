"""Readers of single values: names, times, numbers, addresses, secrets."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from config.fields import At, Reader, Refused
from config.problems import shown
from config.yaml_nodes import Scalar, Sequence
from ledger.clock import parse_time
from ledger.errors import CreditsError

NAME_LENGTH_MAX: Final = 253
_DECIMAL = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?")
_TIME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ][0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,6})?"
                   r"([Zz]|[-+][0-9]{2}:[0-9]{2})")  # fmt: skip
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True, slots=True)
class Address:
    """Where to listen. An empty host is every interface, port 0 any free port."""

    host: str
    port: int


@dataclass(frozen=True, slots=True)
class Secret:
    """A token or key: given as such, or in a file that is read at each use, as it may be rotated."""

    value: str | None = field(default=None, repr=False)
    file: Path | None = None

    def read(self) -> str:
        """The secret now. Raises: CreditsError naming the file that cannot be read or is empty."""
        if self.file is None:
            return self.value or ""
        try:
            text = self.file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise CreditsError(f"the secret in {self.file} cannot be read: {error}") from error
        if not text:
            raise CreditsError(f"the secret in {self.file} is empty")
        return text


def check_name(name: str) -> str | None:
    """What is wrong with a name of a cluster, org, preset..., None if nothing is."""
    if not name:
        return "is empty; a name is needed"
    if len(name) > NAME_LENGTH_MAX:
        return f"has {len(name)} characters; a name has at most {NAME_LENGTH_MAX}"
    odd = next((letter for letter in name if not letter.isprintable()), None)
    if odd is not None:
        return f"holds the control character U+{ord(odd):04X}; a name is printable text"
    if name != name.strip():
        return "starts or ends with a space"
    return None


def _text(at: At) -> str:
    scalar = at.scalar("text")
    if scalar.tag != "str":
        example = '"..."' if at.secret else f'"{scalar.text}"'
        raise Refused(f"is {at.describe()}, not text; quote it: {example}")
    if not scalar.text:
        raise Refused("is empty; expected text")
    return scalar.text


def _name(at: At) -> str:
    text = _text(at)
    if problem := check_name(text):
        raise Refused(problem)
    return text


def _glob(at: At) -> str:
    scalar = at.scalar("text")
    return "" if scalar.tag == "str" and not scalar.text else _name(at)


def _path(at: At) -> Path:
    text = _text(at)
    if "\0" in text:
        raise Refused("holds a NUL character; expected a path")
    return Path(text)


def decimal_text(at: At, example: str) -> str:
    """The text of a plain or quoted decimal number, exactly as written.

    Refuses 1e2, +1 and .5, as amounts are refused everywhere, and what YAML versions read differently: 010, 1:30, 0x1F,
    1_000.
    """
    scalar = at.scalar(f"a decimal number like {example}")
    text = scalar.text
    if len(text) > 64 or _DECIMAL.fullmatch(text) is None:
        raise Refused(f"{shown(text)} is not a plain decimal number; write it like {example}")
    return text


def number(shape: str, least: float, most: float = math.inf, example: str = "15") -> Reader[float]:
    """A number within bounds, both included."""

    def read(at: At) -> float:
        value = float(decimal_text(at, example))
        if not least <= value <= most:
            bounds = f"at least {least:g}" if most == math.inf else f"between {least:g} and {most:g}"
            raise Refused(f"is {at.describe()}; expected {shape} {bounds}")
        return value

    return Reader(shape, read)


def whole_number(least: int, most: int) -> Reader[int]:
    """A whole number within bounds, both included."""

    def read(at: At) -> int:
        text = decimal_text(at, str(least))
        if not (re.fullmatch(r"[-+]?[0-9]+", text) and least <= int(text) <= most):
            raise Refused(f"is {at.describe()}; expected a whole number between {least} and {most}")
        return int(text)

    return Reader("whole number", read)


def _truth(at: At) -> bool:
    scalar = at.scalar("true or false")
    if scalar.tag != "bool" or scalar.text.lower() not in ("true", "false"):
        raise Refused(f"is {at.describe()}; write true or false")
    return scalar.text.lower() == "true"


def _time(at: At) -> int:
    text = at.scalar("a time like 2026-11-22T10:00:00Z").text
    if not _TIME.fullmatch(text):
        raise Refused(f"{shown(text)} is not a time with a zone; write it like 2026-11-22T10:00:00Z")
    try:
        us = parse_time(text.upper())
    except ValueError as error:
        raise Refused(str(error)) from None
    if us <= 0:
        raise Refused(f"{shown(text)} is not after 1970-01-01T00:00:00Z")
    return us


def _address(at: At) -> Address:
    text = at.scalar("host:port").text
    host, colon, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise Refused(f'{shown(text)} is not host:port; an IPv6 address goes in brackets: "[::1]:9470"')
    if not colon or not re.fullmatch(r"[0-9]{1,5}", port) or int(port) > 65535:
        raise Refused(f'{shown(text)} is not host:port; write it like "127.0.0.1:9470"')
    if re.search(r"[\s/@]", host):
        raise Refused(f'{shown(text)} has no host name before the colon; write it like "127.0.0.1:9470"')
    return Address(host, int(port))


def _network(at: At) -> IPv4Network | IPv6Network:
    text = _text(at)
    try:
        return ip_network(text)
    except ValueError as error:
        raise Refused(f"{shown(text)} is no network: {error}; write it like 10.0.0.0/8 or fd00::/8") from None


def url(*schemes: str) -> Reader[str]:
    """A URL of one of these schemes."""
    shape = " or ".join(f"{scheme}://" for scheme in schemes) + " URL"

    def read(at: At) -> str:
        text = _text(at)
        try:
            parts = urlsplit(text)
            place = parts.path if parts.scheme == "unix" else parts.hostname
            usable = parts.scheme in schemes and bool(place) and parts.port != 0
        except ValueError:
            usable = False
        if not usable or not text.isprintable() or " " in text:
            # A URL may carry a password, so the message does not repeat it.
            raise Refused(f"is not an {shape}")
        return text

    return Reader(shape, read)


def _secret(at: At) -> Secret:
    form = at.path[-1]
    given = _text(at)
    if form.endswith("_file"):
        return Secret(file=Path(given))
    if form.endswith("_env"):
        if not _VARIABLE.fullmatch(given):
            raise Refused("is not the name of an environment variable")
        if not (value := at.file.environ.get(given)):
            raise Refused(f"the environment variable {given} is not set")
        return Secret(value)
    return Secret(given)


def _command(at: At) -> tuple[str, ...] | str:
    if isinstance(at.node, Sequence):
        return _arguments(at)
    return _text(at)


def _arguments(at: At) -> tuple[str, ...]:
    if not isinstance(at.node, Sequence) or not at.node.items:
        raise Refused(f"is {at.describe()}; expected a list of arguments: [program, argument, ...]")
    for item in at.node.items:
        if not isinstance(item, Scalar) or item.tag == "null" or "\0" in item.text:
            raise Refused(f"holds {item.describe()}; expected a list of arguments: [program, argument, ...]")
    return tuple(item.text for item in at.node.items if isinstance(item, Scalar))


text: Final = Reader("text", _text)
name: Final = Reader("name", _name)
glob: Final = Reader("text", _glob)
path: Final = Reader("path", _path)
truth: Final = Reader("`true` or `false`", _truth)
time: Final = Reader("time with zone", _time)
address: Final = Reader('"host:port"', _address)
network: Final = Reader("network", _network)
secret: Final = Reader("secret", _secret, secret=True, forms=("", "_file", "_env"))
command: Final = Reader("shell command, or list of arguments", _command)
arguments: Final = Reader("list of arguments", _arguments)
seconds: Final = number("seconds", 0.1, 86400 * 366)
minutes: Final = number("minutes", 0, 60 * 24 * 366)
hours: Final = number("hours", 0, 24 * 366 * 10, "24")

"""What all commands share: `--config` anywhere, kinds of arguments, the ledger, near misses."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from datetime import date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ledger.clock import parse_time, to_us
from ledger.errors import CreditsError, InvalidRequest, LedgerUnavailable, UnknownOrg
from ledger.money import AmountError, parse_credits

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager

    from config.settings import Settings
    from config.values import Address
    from ledger.store import Ledger

DEFAULT_CONFIG = Path("config/settings.yaml")
T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])


@dataclass(slots=True)
class Options:
    """What was said before or after the command's name."""

    config: Path | None = None


def _remember_config(context: click.Context, _parameter: click.Parameter, value: Path | None) -> None:
    if value is not None:
        context.ensure_object(Options).config = value


def _config_option(envvar: str | None) -> click.Option:
    return click.Option(
        ["--config"],
        type=click.Path(path_type=Path),
        metavar="FILE",
        envvar=envvar,
        expose_value=False,
        callback=_remember_config,
        help=f"Settings; else CREDITS_CONFIG, else {DEFAULT_CONFIG}.",
    )


class Command(click.Command):
    """A command that takes `--config` after its name as well. `below_zero`: what to do instead of an amount below 0."""

    def __init__(self, *args: Any, below_zero: str = "", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params.append(_config_option(None))
        self._below_zero = below_zero

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:  # -5 looks like an option
            takes_amounts = any(isinstance(parameter.type, Credits) for parameter in self.params)
            if takes_amounts and error.option_name[1:2] in ".0123456789":
                ctx.fail(f"credits are not below 0 here{self._below_zero}")
            raise
        except click.BadOptionUsage as error:  # raised without saying of which command
            error.ctx = error.ctx or ctx
            raise


class Group(click.Group):
    """A family of commands, which says what an unknown one was probably meant to be."""

    command_class = Command
    group_class = type

    def __init__(self, *args: Any, envvar: str | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params.append(_config_option(envvar))

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and self.get_command(ctx, args[0]) is None and not args[0].startswith("-"):
            from config.problems import did_you_mean

            ctx.fail(f"No such command {args[0]!r}{did_you_mean(args[0], self.list_commands(ctx))}")
        return super().resolve_command(ctx, args)


class Credits(click.ParamType[int]):
    """An amount, as micro-credits."""

    name = "credits"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        try:
            return parse_credits(value, "amount")
        except AmountError as e:
            self.fail(str(e), param, ctx)


class Time(click.ParamType[int]):
    """An instant, as microseconds since 1970; a date is its first instant in the command's `--timezone`, else UTC."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        try:
            zone = ctx.params.get("timezone") if ctx is not None else None
            return _midnight(value, zone or "UTC") if _is_date(value) else parse_time(value)
        except InvalidRequest as e:
            self.fail(str(e), param, ctx)
        except ValueError as e:
            self.fail(f"{e} or 2026-11-22", param, ctx)


def _midnight(text: str, zone: str) -> int:
    from zoneinfo import ZoneInfo

    from ledger.steps import check_zone

    return to_us(datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(check_zone(zone))))


def _is_date(text: str) -> bool:
    try:
        return date.fromisoformat(text).isoformat() == text
    except ValueError:
        return False


def json_option(function: F) -> F:
    """Adds `--json`, which comes in as `as_json`."""
    return click.option("--json", "as_json", is_flag=True, help="For programs.")(function)


def csv_option(function: F) -> F:
    """Adds `--csv`, which comes in as `as_csv`."""
    return click.option("--csv", "as_csv", is_flag=True, help="For spreadsheets.")(function)


def settings() -> Settings:
    """The settings this command was started with. Raises: ConfigError; click.UsageError where there is no file."""
    import os

    from config.settings import load_settings

    options = click.get_current_context().find_object(Options)
    path = (options and options.config) or DEFAULT_CONFIG
    if not path.exists():
        raise click.UsageError(f"settings {path}: no such file; name one with --config FILE or CREDITS_CONFIG")
    return load_settings(path, os.environ)


def open_ledger(given: Settings) -> AbstractAsyncContextManager[Ledger]:
    """The ledger of these settings; the embedded server is started when none runs."""
    from ledger import store

    return store.open_ledger(given.redis.url, given.data_dir, given.metering.epoch_us)


def with_ledger(work: Callable[[Ledger], Coroutine[Any, Any, T]]) -> T:
    """The result of `work(ledger)` on the ledger of the settings.

    Raises: CreditsError with the org that was probably meant, or how to make one, where there is none of a name.
    """
    given = settings()

    async def run() -> T:
        async with open_ledger(given) as ledger:
            try:
                return await work(ledger)
            except UnknownOrg as e:
                near = await very_like(ledger, e.org)
                hint = f"did you mean {near!r}?" if near else f"`credits grant {e.org} CREDITS` creates it"
                raise CreditsError(f"no org {e.org!r}; {hint}") from e

    return asyncio.run(run())


async def very_like(ledger: Ledger, org: str) -> str | None:
    """The org, among the others, that a name was probably meant to be."""
    from config.problems import near_miss

    return near_miss(org, [name for name in await ledger.accounts.orgs() if name != org])


def new_key() -> str:
    """An idempotency key, where none is given."""
    import secrets

    return f"cli-{secrets.token_hex(8)}"


def acknowledged(work: Callable[[Ledger], Coroutine[Any, Any, T]], key: str) -> T:
    """As `with_ledger`, of what moves credits: where it is not known whether it did, says how to repeat it safely.

    Raises: LedgerUnavailable.
    """
    try:
        return with_ledger(work)
    except LedgerUnavailable as e:
        raise LedgerUnavailable(f"{e}\nnot acknowledged; repeat it safely with --idempotency-key {key}") from e


def reach(listen: Address) -> str:
    """`host:port` at which a listener of this machine is reached."""
    host = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(listen.host, listen.host)  # noqa: S104
    return f"[{host}]:{listen.port}" if ":" in host and not host.startswith("[") else f"{host}:{listen.port}"


def who() -> str:
    """Who is at work here, for the journal."""
    import getpass

    try:
        return f"cli:{getpass.getuser()}"
    except (KeyError, OSError):  # a user without a name
        import os

        return f"cli:{os.geteuid()}"

"""The `credits` command: what it is made of, and how it ends.

Exit codes: 0 done, 1 no (refused, failed, differs), 2 wrong use (arguments, settings), 130 interrupted.
"""

from __future__ import annotations

import os
import re
import sys
from typing import Final, NoReturn

import click

from cli import (
    accounts,
    admission,
    billing,
    journals,
    moves,
    notices,
    reports,
    services,
    tokens,
    tools,
    top_up,
    tour,
    webhook,
)
from cli.base import Group, Options
from ledger.errors import CreditsError, InvalidRequest

INTERRUPTED = 130
_NUMBERS: Final = {"integer": "a whole number", "float": "a number"}
_NUMBER: Final = re.compile(r"(?<=is not )a valid (integer|float)(?: range)?$")


@click.group(cls=Group, envvar="CREDITS_CONFIG", context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="apolo-credits", prog_name="credits")
@click.pass_context
def commands(context: click.Context) -> None:
    """Prepaid credits for compute clusters: meter, ledger, reports and admission."""
    context.ensure_object(Options)


for family in (
    services,
    accounts,
    moves,
    journals,
    admission,
    reports,
    billing,
    tokens,
    webhook,
    tools,
    tour,
    notices,
    top_up,
):
    for command in family.COMMANDS:
        commands.add_command(command)


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run one command and leave with its exit code."""
    code = run_command(arguments)
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        _forget_stdout()
    sys.exit(code)


def run_command(arguments: list[str] | None) -> int:
    """Run one command, say what goes wrong, and give its exit code."""
    try:
        result = commands.main(arguments, prog_name="credits", standalone_mode=False)
    except click.Abort:
        return INTERRUPTED
    except KeyboardInterrupt:
        return INTERRUPTED
    except SystemExit:  # click's answer to a broken pipe: whoever read our output has read enough
        return 0
    except click.exceptions.NoArgsIsHelpError as e:
        e.show()
        return e.exit_code
    except click.UsageError as e:
        command = e.ctx.command_path if e.ctx else "credits"
        return _say(f"{_on_one_line(e.format_message())}; see `{command} --help`", e.exit_code)
    except click.ClickException as e:
        return _say(_on_one_line(e.format_message()), e.exit_code)
    except InvalidRequest as e:
        return _say(e, 2)
    except CreditsError as e:
        from config.problems import ConfigError

        return _say(e, 2 if isinstance(e, ConfigError) else 1)
    except OSError as e:
        return _say(e, 1)
    except Exception as e:
        if type(e).__module__.split(".")[0] != "redis":
            raise
        return _say(f"the ledger's server answers: {e or type(e).__name__}", 1)
    return result if isinstance(result, int) else 0


def _say(problem: object, code: int) -> int:
    click.echo(f"credits: {problem}", err=True)
    return code


def _on_one_line(message: str) -> str:
    # Choices are listed below one another; here they go on. Numbers are called what people call them.
    message = _NUMBER.sub(lambda found: _NUMBERS[found[1]], " ".join(message.split()).rstrip("."))
    return message[:1].lower() + message[1:] if message[1:2].islower() else message


def _forget_stdout() -> None:
    # The interpreter flushes once more at its end, into a pipe that nobody reads.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    main()

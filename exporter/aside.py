"""Work that reads the whole ledger goes into a process of its own: rounds and scrapes do not wait for it."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Any, Final

from ledger.errors import CreditsError

log = logging.getLogger(__name__)
_NICE: Final = 10


class Unfinished(CreditsError):
    """The process ended without an answer; the text is its last word."""


async def again_and_again(
    what: str, work: Callable[[], Awaitable[None]], first_seconds: float, every_seconds: float
) -> None:
    """Does `work` until cancelled. When it fails, the log says that `what` failed, and it is done the next time."""
    await asyncio.sleep(first_seconds)
    while True:
        try:
            await work()
        except Unfinished as error:
            log.error("%s failed: %s", what, error)
        except Exception:
            log.exception("%s failed", what)
        await asyncio.sleep(every_seconds)


async def ask(module: str, question: Mapping[str, Any]) -> Any:
    """The JSON that `python -m module` answers. The question goes through its stdin: a URL may hold a password.

    Raises: Unfinished.
    """
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", module),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,  # Ctrl-C is for the exporter, which ends it
    )
    try:
        answer, errors = await child.communicate(json.dumps(question).encode())
    finally:
        if child.returncode is None:
            with suppress(ProcessLookupError):
                child.kill()
            await child.wait()
    if child.returncode != 0:
        lines = errors.decode("utf-8", "replace").strip().splitlines()
        raise Unfinished(lines[-1] if lines else f"status {child.returncode}")
    return json.loads(answer)


def answer(work: Callable[[dict[str, Any]], Awaitable[Any]]) -> None:
    """The process' side of `ask`."""

    async def run() -> Any:
        return await work(json.load(sys.stdin))

    os.nice(_NICE)
    try:
        result = asyncio.run(run())
    except CreditsError as error:
        sys.exit(str(error))
    json.dump(result, sys.stdout)

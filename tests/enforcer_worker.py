"""An enforcer as a process of its own: `python -m tests.enforcer_worker SETTINGS`. Prints its URL."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from config.settings import load_settings
from enforcer.app import enforcing


async def main(path: str) -> None:
    async with enforcing(load_settings(Path(path), {})) as url:
        print(url, flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))

"""What was let through while the ledger was away, on disk: it outlives the process until the ledger has it.

A file of JSON lines: what was let through, each on disk before its job is told yes, and the ids of what the ledger
has by now. Once it has all, the file is emptied. Only a thread touches the file, so that a disk that takes its time
keeps nobody waiting but those whose line it is.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import msgspec

from ledger.admission import AdmissionRequest, Terms
from ledger.errors import CreditsError, InvalidRequest

KEPT_MAX: Final = 50_000
"""Of what was let through and the ledger does not have yet; nothing more is let through then."""
_BYTES_MAX: Final = 256 * 1024 * 1024
log = logging.getLogger(__name__)


class SpoolError(CreditsError):
    """What is let through cannot be kept, so it is not let through."""


class LetThrough(msgspec.Struct, frozen=True):
    """One request, named by its hold's id, with what it needed (micro-credits) and its entry in the journal."""

    request: AdmissionRequest
    terms: Terms
    required_micro: int
    entry: dict[str, Any]

    @property
    def id(self) -> str:
        return self.request.hold_id


class _Line(msgspec.Struct, omit_defaults=True):
    """Either of the two."""

    kept: LetThrough | None = None
    done: str = ""


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(_Line).decode


class Spool:
    """Holds back what is kept, oldest first, in `waiting`. Without a path nothing outlives the process."""

    def __init__(self, path: Path | None) -> None:
        """Raises: InvalidRequest where the file cannot be used."""
        self.waiting: deque[LetThrough] = deque()
        self._path = path
        self._file: int | None = None
        # One of its own: others may all be waiting for a resolver that does not answer, as the ledger does not.
        self._thread = ThreadPoolExecutor(1, "let-through")
        self._lines: list[tuple[bytes, asyncio.Future[None] | None]] = []
        self._writer: asyncio.Task[None] | None = None
        self._coming = 0
        self._is_torn = False
        """Whether the file ends in half a line, which what comes next is not to be a part of."""
        if path is not None:
            self._open(path)

    async def keep(self, item: LetThrough) -> None:
        """On disk once this returns; those that come at the same time share a write.

        Raises: SpoolError, and then it is not kept. When cancelled it is not kept either.
        """
        if len(self.waiting) + self._coming >= KEPT_MAX:
            raise SpoolError(f"More than {KEPT_MAX} requests were let through since the ledger is away.")
        if self._file is None:
            self.waiting.append(item)
            return
        written: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._put(_Line(kept=item), written)
        self._coming += 1
        try:
            await asyncio.shield(written)
        except asyncio.CancelledError:
            written.add_done_callback(lambda done: self._take_back(item.id, done))
            raise
        except OSError as error:
            raise SpoolError(f"{self._path} cannot be written: {error.strerror or error}") from error
        finally:
            self._coming -= 1
        self.waiting.append(item)

    def done(self) -> None:
        """The ledger has the first that waits. Should this mark get lost, it is written to the ledger once more."""
        item = self.waiting.popleft()
        if self._file is not None:
            self._put(_Line(done=item.id))

    async def close(self) -> None:
        """What waits is taken up at the next start."""
        if self._writer is not None:
            await self._writer
        if self._file is not None:
            os.close(self._file)
            self._file = None
        self._thread.shutdown(wait=False)

    def _open(self, path: Path) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            data = path.read_bytes()
        except BlockingIOError:
            raise InvalidRequest(f"{path}: another enforcer uses it; give this one another data_dir") from None
        except OSError as error:
            raise InvalidRequest(f"{path} (data_dir) cannot be used: {error.strerror or error}") from error
        whole = data.rfind(b"\n") + 1
        if whole < len(data):  # the process was killed while it wrote this, so nobody was told yes
            os.ftruncate(self._file, whole)
        kept: dict[str, LetThrough] = {}
        for line in data[:whole].splitlines():
            try:
                said = _decode(line)
            except (msgspec.MsgspecError, UnicodeDecodeError) as error:
                log.error("%s: a line that cannot be read is passed over: %s", path, error)
                continue
            if said.kept is not None:
                kept[said.kept.id] = said.kept
            else:
                kept.pop(said.done, None)
        self.waiting.extend(kept.values())
        if kept:
            log.warning("%s: %d requests that were let through wait for the ledger", path, len(kept))

    def _take_back(self, name: str, written: asyncio.Future[None]) -> None:
        """Nobody was told yes."""
        if written.exception() is None:
            self._put(_Line(done=name))

    def _put(self, line: _Line, written: asyncio.Future[None] | None = None) -> None:
        self._lines.append((_encode(line) + b"\n", written))
        if self._writer is None or self._writer.done():
            self._writer = asyncio.create_task(self._write())

    async def _write(self) -> None:
        while self._lines:
            lines, self._lines = self._lines, []
            data, loop = b"".join(line for line, _ in lines), asyncio.get_running_loop()
            awaited = [written for _, written in lines if written is not None]
            try:
                if self.waiting or self._coming:
                    await loop.run_in_executor(self._thread, self._append, data, bool(awaited))
                else:  # as good as the marks
                    await loop.run_in_executor(self._thread, self._empty)
            except OSError as error:
                if len(awaited) < len(lines):
                    log.error("%s cannot be written: %s", self._path, error.strerror or error)
                for written in awaited:
                    written.set_exception(error)
            else:
                for written in awaited:
                    written.set_result(None)

    def _append(self, data: bytes, to_disk: bool) -> None:
        assert self._file is not None
        size, was_torn = os.fstat(self._file).st_size, self._is_torn
        if was_torn:
            data = b"\n" + data
        if to_disk and size + len(data) > _BYTES_MAX:
            raise OSError(f"it would be larger than {_BYTES_MAX} bytes")
        self._is_torn = True
        try:
            rest = memoryview(data)
            while rest:
                rest = rest[os.write(self._file, rest) :]
            if to_disk:
                os.fsync(self._file)
            self._is_torn = False
        except OSError:
            os.ftruncate(self._file, size)  # no half a line for others to go on from
            self._is_torn = was_torn
            raise

    def _empty(self) -> None:
        assert self._file is not None
        os.ftruncate(self._file, 0)
        self._is_torn = False

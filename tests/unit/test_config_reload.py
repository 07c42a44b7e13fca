"""Hot reload of a real file: what edits bring in, what keeps the last good version in force."""

# ruff: noqa: ASYNC240  (these tests are about files, and wait for nothing else)

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from config.problems import ConfigError
from config.rates import parse_rates
from config.reload import Reloader, watched_directories
from ledger.errors import LedgerUnavailable
from ledger.model import RatePlan
from ledger.money import NANO

Plans = dict[str, RatePlan]
POLL_NEVER = 3600.0


def rates(rate: int | str) -> str:
    return f"clusters: {{default: {{presets: {{x: {{credits_per_hour: {rate}}}}}}}}}\n"


def price(plans: Plans) -> int:
    return plans["default"].at(0).presets["x"] // NANO


class Taker:
    """Takes new values and lets a test wait for them."""

    def __init__(self) -> None:
        self.prices: list[int] = []
        self.refuse = False
        self._changed = asyncio.Condition()

    async def __call__(self, plans: Plans) -> None:
        if self.refuse:
            raise LedgerUnavailable
        self.prices.append(price(plans))
        async with self._changed:
            self._changed.notify_all()

    async def until(self, rate: int) -> None:
        async with asyncio.timeout(20), self._changed:
            await self._changed.wait_for(lambda: self.prices[-1:] == [rate])


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "config" / "rates.yaml"
    path.parent.mkdir()
    path.write_text(rates(1))
    return path


@pytest.fixture
def taker() -> Taker:
    return Taker()


def reloader(file: Path, taker: Taker, poll_seconds: float = POLL_NEVER) -> Reloader[Plans]:
    return Reloader(file, parse_rates, taker, clock=lambda: 7, poll_seconds=poll_seconds, settle_seconds=0.001)


@asynccontextmanager
async def running(reloader: Reloader[Plans]) -> AsyncIterator[None]:
    task = asyncio.create_task(reloader.run())
    try:
        yield
        assert not task.done(), "the watch goes on whatever happens"
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def repeat_until(taker: Taker, rate: int, act: Callable[[], None]) -> None:
    """Acts again until it is noticed: nothing tells when the system's watch has begun."""
    waiting = asyncio.create_task(taker.until(rate))
    while not waiting.done():
        act()
        await asyncio.wait([waiting], timeout=0.3)
    await waiting


def write_in_place(file: Path, text: str) -> None:
    file.write_text(text)


def rename_over(file: Path, text: str) -> None:
    new = file.with_name("rates.yaml.new")
    new.write_text(text)
    new.replace(file)


def remove_and_write(file: Path, text: str) -> None:
    file.unlink(missing_ok=True)
    file.write_text(text)


@pytest.mark.parametrize("edit", [write_in_place, rename_over, remove_and_write])
async def test_every_way_of_saving_a_file_is_noticed(file: Path, taker: Taker, edit: Callable[[Path, str], None]):
    kept = reloader(file, taker)
    async with running(kept):
        await repeat_until(taker, 2, lambda: edit(file, rates(2)))
        # Not only the first time: a file that was renamed over is another inode.
        await repeat_until(taker, 3, lambda: edit(file, rates(3)))
    assert price(kept.value) == 3


def config_map(volume: Path, version: str, text: str) -> None:
    """What the kubelet does: a new directory, and `..data` renamed over to point there."""
    target = volume / f"..{version}"
    target.mkdir(exist_ok=True)
    (target / "rates.yaml").write_text(text)
    (volume / "..new").unlink(missing_ok=True)
    (volume / "..new").symlink_to(target.name)
    os.replace(volume / "..new", volume / "..data")


async def test_a_new_version_of_a_kubernetes_config_map_is_noticed(tmp_path: Path, taker: Taker):
    config_map(tmp_path, "2026_11_22_1", rates(1))
    link = tmp_path / "rates.yaml"
    link.symlink_to("..data/rates.yaml")
    async with running(reloader(link, taker)):
        await repeat_until(taker, 2, lambda: config_map(tmp_path, "2026_11_22_2", rates(2)))
        await repeat_until(taker, 3, lambda: config_map(tmp_path, "2026_11_22_3", rates(3)))


async def test_a_change_behind_a_link_and_a_change_of_the_link_are_noticed(file: Path, tmp_path: Path, taker: Taker):
    link = tmp_path / "link.yaml"
    link.symlink_to(file)
    other = tmp_path / "elsewhere" / "rates.yaml"
    other.parent.mkdir()

    def point_elsewhere() -> None:
        other.write_text(rates(3))
        link.unlink()
        link.symlink_to(other)

    assert watched_directories(link) == sorted({tmp_path, file.parent})
    async with running(reloader(link, taker)):
        await repeat_until(taker, 2, lambda: write_in_place(file, rates(2)))
        await repeat_until(taker, 3, point_elsewhere)
        await repeat_until(taker, 4, lambda: write_in_place(other, rates(4)))


async def test_without_a_watch_the_file_is_looked_at_from_time_to_time(
    file: Path, taker: Taker, monkeypatch: pytest.MonkeyPatch
):
    def refuse(*_: object, **__: object) -> None:
        raise OSError("no watches left")

    monkeypatch.setattr("watchfiles.main.RustNotify", refuse)
    async with running(reloader(file, taker, poll_seconds=0.01)):
        file.write_text(rates(2))
        await taker.until(2)


async def test_a_directory_that_goes_and_comes_back_is_followed(file: Path, taker: Taker):
    kept = reloader(file, taker, poll_seconds=0.05)
    async with running(kept):
        file.unlink()
        file.parent.rmdir()
        assert not await kept.reload()
        assert kept.last_error is not None
        assert "cannot be read" in kept.last_error
        file.parent.mkdir()
        file.write_text(rates(2))
        await taker.until(2)
    assert kept.last_reload_successful


async def test_a_bad_file_leaves_the_last_good_one_in_force(file: Path, taker: Taker, caplog: pytest.LogCaptureFixture):
    kept = reloader(file, taker)
    file.write_text(rates(-1))
    assert not await kept.reload()
    assert (price(kept.value), kept.last_reload_successful, kept.last_success_us) == (1, False, 7)
    assert f"{file}:1: clusters.default.presets.x.credits_per_hour: rate '-1' is negative" == kept.last_error
    assert "The last good version stays in force" in caplog.text
    assert await kept.reload() is False
    assert caplog.text.count("is negative") == 1, "said once, not at every look"
    file.write_text(rates(2))
    assert await kept.reload()
    assert (taker.prices, kept.last_reload_successful, kept.last_error) == ([2], True, None)


async def test_a_bad_file_at_the_start_is_refused(file: Path, taker: Taker):
    file.write_text("clusters: [")
    with pytest.raises(ConfigError):
        reloader(file, taker)


async def test_comments_and_order_are_no_change(file: Path, taker: Taker):
    kept = reloader(file, taker)
    file.write_text(f"# a comment\n{rates('1.0')}")
    assert await kept.reload()
    assert taker.prices == []


async def test_a_value_that_could_not_be_put_in_force_is_tried_again(file: Path, taker: Taker):
    kept = reloader(file, taker, poll_seconds=0.05)
    taker.refuse = True
    file.write_text(rates(2))
    assert not await kept.reload()
    assert (price(kept.value), taker.prices) == (1, [])
    assert "could not be put in force: The ledger's server" in (kept.last_error or "")
    taker.refuse = False
    async with running(kept):
        await taker.until(2)


async def test_a_good_file_that_was_away_is_good_again(file: Path, taker: Taker):
    kept = reloader(file, taker)
    file.rename(file.with_name("aside"))
    assert not await kept.reload()
    file.with_name("aside").rename(file)
    assert await kept.reload()
    assert kept.last_error is None


async def test_reloads_at_once_take_over_a_change_once(file: Path, taker: Taker):
    kept = reloader(file, taker)
    file.write_text(rates(2))
    assert all(await asyncio.gather(*(kept.reload() for _ in range(5))))
    assert taker.prices == [2]


async def test_a_file_that_is_being_written_is_not_taken_by_half(
    file: Path, taker: Taker, monkeypatch: pytest.MonkeyPatch
):
    kept = reloader(file, taker)
    whole = rates(2).encode()
    seen = iter([b"clusters: {}\n", whole[:20], whole, whole])
    monkeypatch.setattr("config.reload.read_bytes", lambda _: next(seen))
    assert await kept.reload()
    assert taker.prices == [2]

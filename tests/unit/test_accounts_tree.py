"""The account tree beside the submit hook: what is told while Slurm is away."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import pytest

from config.sources import SlurmSource
from enforcer.admission import accounts_tree
from enforcer.admission.accounts_tree import AccountTree


async def test_an_outage_of_slurm_is_told_once_and_again_when_it_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(accounts_tree, "_AGAIN_SECONDS", 0.001)
    monkeypatch.setattr(accounts_tree, "_EVERY_SECONDS", 0.001)
    caplog.set_level(logging.INFO)
    program, calls = tmp_path / "sacctmgr", tmp_path / "calls"

    def now_says(answer: str) -> None:
        new = tmp_path / "new"
        new.write_text(f"#!/bin/sh\necho called >> {calls}\n{answer}\n")
        new.chmod(0o755)
        new.rename(program)

    async def called(times: int) -> None:
        calls.write_text("")
        async with asyncio.timeout(20):
            while calls.read_text().count("called") < times:  # noqa: ASYNC110 - a program writes it
                await asyncio.sleep(0.01)

    tree = AccountTree(SlurmSource(cluster="hpc", bin_dir=tmp_path, timeout_seconds=10))
    now_says("echo gone >&2; exit 1")
    tree.start()
    try:
        await called(5)
        now_says("echo no database >&2; exit 1")
        await called(5)
        now_says("echo 'hpc|root||'")
        await called(5)
    finally:
        await tree.stop()
    said = [record.getMessage().rpartition(": ")[2] for record in caplog.records if "account tree" in record.message]
    assert said == ["gone", "no database", "the account tree of Slurm cluster hpc can be read again"]

"""`notices` and `top-up` as they are typed."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from cli.base import open_ledger
from config.settings import load_settings
from ledger.notice_prefs import NoticePreferences, Preferences
from tests.cli_lab import Lab

pytestmark = pytest.mark.redis
TERMS = ("--threshold", "50", "--credits", "100", "--monthly-cap", "300")
PAYMENTS = {
    "secret_key": "sk_test_1", "webhook_secret": "whsec_1", "public_url": "https://credits.example.com",
    "price_per_credit": "0.05",
}  # fmt: skip


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    lab = Lab(tmp_path)
    lab.settings(sources=[{"type": "json", "cluster": "default", "path": "snapshot.json"}], payments=PAYMENTS)
    lab.ok("grant", "acme", "100")
    return lab


def test_auto_top_up_is_set_shown_and_switched_off(lab: Lab) -> None:
    assert "off" in lab.ok("top-up", "show", "acme")
    shape = lab.json("top-up", "set", "acme", *TERMS)
    assert (shape["state"], shape["credits"], shape["monthly_cap"]) == ("no_card", "100", "300")
    assert lab.run("top-up", "set", "acme", *TERMS[:4], "--monthly-cap", "1").returncode == 2
    assert lab.run("top-up", "set", "nobody", *TERMS).returncode == 1
    shape = lab.json("top-up", "off", "acme")
    assert (shape["state"], shape["credits"]) == ("off", "100")
    assert lab.json("top-up", "off", "acme", "--forget-card")["credits"] is None


def test_a_test_goes_to_those_whom_the_org_named(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    refused = lab.run("notices", "test", "acme")
    assert refused.returncode == 1
    assert "names nobody to tell" in refused.stderr

    async def name() -> None:
        given = load_settings(lab.directory / "config" / "settings.yaml", {})
        async with open_ledger(given) as ledger:
            wanted = Preferences(email=("ops@example.org",))
            await NoticePreferences(ledger.client, ledger.scripts).put("acme", wanted, who="t")

    monkeypatch.chdir(lab.directory)
    asyncio.run(name())
    assert "ops@example.org" in lab.ok("notices", "show", "acme")
    refused = lab.run("notices", "test", "acme")
    assert (refused.returncode, "no mail server is set up here" in refused.stderr) == (1, True)
    mail = {"from": "credits@example.com", "smtp": {"host": "127.0.0.1", "tls": "none"}}
    lab.settings(notices=mail)
    assert lab.json("notices", "test", "acme")["email"] == ["ops@example.org"]

"""What slurmctld itself refuses after our yes holds nothing for long, nor does what is cancelled in the queue.

What waits is held all the while, also when the exporter is away.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.slurm_lab import SbatchRefused, missing_for_lab, wait_until
from tests.slurm_site import BURNER, Site, charge, paid_site

pytestmark = [pytest.mark.slurm, pytest.mark.prometheus, pytest.mark.slow]

MINUTE = (*BURNER, "--time=1")  # 600 credits
SOON = 150
"""Seconds: a minute to be listed, half a minute to be found again, rounds, and a machine that is slow."""


@pytest.fixture(scope="module")
def site(slurm_base: Path) -> Iterator[Site]:
    if reason := missing_for_lab():
        pytest.skip(reason)
    with paid_site(slurm_base / "refused", {"wayne": ("cave",)}, metering={"interval_seconds": 1}) as found:
        yield found


def test_what_slurm_refuses_after_our_yes_is_free_again(site: Site) -> None:
    lab = site.slurm
    site.desk.ok("grant", "wayne", "1250")
    waits = lab.sbatch("bob", "cave", "sleep 1", [*MINUTE, "--begin=now+1hour"])
    hold = site.comment(waits)
    assert hold.startswith("credits:hold=wayne.")
    with pytest.raises(SbatchRefused) as refused:
        lab.sbatch("bob", "cave", "sleep 1", [*MINUTE, "--licenses=none:1"])
    assert "Invalid license specification" in str(refused.value)
    assert site.balance("wayne")["held"] == "1200"  # the hook had been told yes
    with pytest.raises(SbatchRefused, match="Org wayne has 50 credits left"):
        lab.sbatch("bob", "cave", "sleep 1", MINUTE)
    began = time.monotonic()
    site.desk.ok("grant", "wayne", "600")
    with site.exporter.sent(signal.SIGKILL):
        cancelled = lab.sbatch("bob", "cave", "sleep 1", [*MINUTE, "--begin=now+1hour"])
        assert site.balance("wayne")["held"] == "1800"
    lab.run("scancel", str(cancelled))
    wait_until("both are free", lambda: site.balance("wayne")["held"] == "600", SOON, 0.5)
    assert time.monotonic() - began > 45  # not before they could have been listed
    lab.run("scontrol", "update", f"JobId={waits}", "StartTime=now")
    assert site.comment(waits) == hold
    (run,) = lab.wait_recorded(waits, seconds=60)
    site.wait_charged("wayne", {charge("cave", "burner", run)})
    wait_until("nothing is held", lambda: site.balance("wayne")["held"] == "0", 30, 0.2)
    verified = site.desk.json("verify")
    assert (verified["ok"], verified.get("orphan_holds")) == (True, None)

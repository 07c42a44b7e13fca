"""The console as `credits run` and `credits enforcer` serve it: over https, through a provider, shared by enforcers."""

from __future__ import annotations

import asyncio
import ssl
import subprocess
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from enforcer.admission.webhook_config import make_pair
from tests.cli_lab import Lab
from tests.integration.test_oidc import PEOPLE
from tests.servers import free_port
from tests.sign_in_lab import Browser
from tests.standins.oidc import CLIENT_ID, CLIENT_SECRET, OidcProvider, oidc_provider

pytestmark = pytest.mark.slow


class ConsoleLab(Lab):
    """Services on free ports of the loopback, over https."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.processes: list[subprocess.Popen[str]] = []
        self.cert, self.key = make_pair(directory, ["127.0.0.1"])
        self.context = ssl.create_default_context(cafile=str(self.cert))

    async def serve(self, command: str, port: int, **settings: Any) -> str:
        """Starts a command on a port and waits until it serves."""
        tls = {"cert": str(self.cert), "key": str(self.key)}
        self.settings(
            sources=[{"type": "simulated", "cluster": "default", "orgs": ["acme"]}],
            metering={"interval_seconds": 0.2},
            exporter={"listen": f"127.0.0.1:{free_port()}"},
            enforcer={"listen": f"127.0.0.1:{port}", "tls": tls},
            **settings,
        )
        process = self.start(command, start_new_session=True)
        self.processes.append(process)
        url = f"https://127.0.0.1:{port}"
        async with asyncio.timeout(60), aiohttp.ClientSession() as http:
            while True:
                assert process.poll() is None, process.communicate()
                try:
                    async with http.get(f"{url}/-/ready", ssl=self.context):
                        return url
                except aiohttp.ClientConnectionError:
                    await asyncio.sleep(0.05)


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[ConsoleLab]:
    lab = ConsoleLab(tmp_path)
    yield lab
    for process in lab.processes:
        process.kill()
        process.communicate()


async def test_a_session_is_shared_by_run_and_an_enforcer_beside_it_over_https(lab: ConsoleLab) -> None:
    async with AsyncExitStack() as stack:
        idp = await stack.enter_async_context(oidc_provider(OidcProvider(people=dict(PEOPLE))))
        port = free_port()
        idp.redirect_uri = f"https://127.0.0.1:{port}/console/oidc/callback"
        (lab.directory / "secret").write_text(CLIENT_SECRET)
        console = {
            "public_url": f"https://127.0.0.1:{port}",
            "oidc": {
                "issuer": idp.url, "client_id": CLIENT_ID, "client_secret_file": "secret",
                "rules": [{"claim": "groups", "value": "org-*-owners", "role": "owner", "org": "{1}"}],
            },
        }  # fmt: skip
        url = await lab.serve("run", port, console=console)
        connector = aiohttp.TCPConnector(ssl=lab.context)
        http = await stack.enter_async_context(
            aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar())
        )

        browser = Browser(url, http)
        token = (lab.directory / "var/admin.token").read_text().strip()
        signed_in = await browser.sign_in(token, "/console/orgs")
        assert signed_in.where == "/console/orgs", signed_in.text
        assert {"HttpOnly", "Path=/", "SameSite=Lax", "Secure"} == set(signed_in.cookies[0].split("; ")[1:])
        assert list(browser.cookies) == ["__Host-credits"]
        assert "acme" in (await browser.get("/console/orgs")).text
        assert "simulated-default" in (await browser.get("/console/sources")).text
        assert "gpu-large" in (await browser.get("/console/rates")).text

        ann = Browser(url, http)
        start = await ann.get("/console/oidc/start?next=/console/session")
        async with http.get(f"{start.where}&login=ann", allow_redirects=False) as response:
            back = response.headers["Location"].removeprefix(url)
        assert (await ann.get(back)).where == "/console/session"
        assert "sso:ann@acme.com (owner)" in (await ann.get("/console/session")).text

        other = free_port()
        beside = Browser(await lab.serve("enforcer", other, console=console), http, browser.cookies)
        assert (await beside.get("/console/tokens")).status == 200
        # Only the address of the settings is one that forms come from.
        assert (await beside.post("/console/sign-out", {}, Origin="https://evil.example")).status == 403
        await beside.send("/console/sign-out", {"whose": "mine"}, "/console/session")
        browser.cookies = {"__Host-credits": signed_in.cookies[0].partition(";")[0].partition("=")[2]}
        assert (await browser.get("/console/tokens")).status == 303
        assert (await ann.get("/console/orgs/acme")).status == 200

"""`webhook make`: what a Kubernetes cluster needs to ask the enforcer."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import click

from cli.base import Group, json_option, open_ledger, settings, who
from cli.output import print_json

if TYPE_CHECKING:
    from config.settings import Settings
    from config.sources import KubernetesSource

_LABEL: Final = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")


@click.group(cls=Group)
def webhook() -> None:
    """Admission of pods and jobs of Kubernetes."""


@webhook.command("make")
@click.option(
    "--dir", "directory", type=click.Path(path_type=Path, file_okay=False), required=True,
    help="Where tls.crt and tls.key are made; a pair that is there is used.",
)  # fmt: skip
@click.option("--service", help="The Service in front of the enforcer, port 443.")
@click.option("--namespace", help="Its namespace.")
@click.option("--url", help="Instead of a Service: https://HOST:PORT of the enforcer.")
@click.option("--cluster", help="Which one, where the settings have several.")
@click.option("--token", help="A scheduler's token for the API server; else one is made.")
@click.option("--fail-open", is_flag=True, help="Pods start also while the enforcer itself is away.")
@json_option
def webhook_make(
    directory: Path,
    service: str | None,
    namespace: str | None,
    url: str | None,
    cluster: str | None,
    token: str | None,
    fail_open: bool,
    as_json: bool,
) -> None:
    """Make a self-signed certificate and print the ValidatingWebhookConfiguration to apply."""
    import asyncio

    import yaml

    from enforcer.admission.webhook_config import check_pair, make_pair, webhook_configuration

    given = settings()
    source = _source(given, cluster)
    place, hosts = _place(service, namespace, url)
    tls = given.enforcer.tls
    shows_certificate = tls is not None and tls.client_ca is not None
    cert, key = directory / "tls.crt", directory / "tls.key"

    async def make_token() -> tuple[str, str, list[str]]:
        """(token, its id, ids of those that were made for this before)"""
        note = f"API server of {source.cluster}"
        async with open_ledger(given) as ledger:
            kept = [record for record, _ in await ledger.tokens.list()]
            before = [one.id for one in kept if (one.role, one.org, one.note) == ("scheduler", None, note)]
            record, secret = await ledger.tokens.create("scheduler", note=note, who=who())
            return secret, record.id, before

    is_there = cert.exists() and key.exists()
    if is_there:
        check_pair(cert, hosts[0])
    else:
        make_pair(directory, hosts)
    token_id, before = None, list[str]()
    if token is None and not shows_certificate:
        token, token_id, before = asyncio.run(make_token())
    text = webhook_configuration(
        source, cert.read_bytes(), token=token, url=url, service=place, fail_open=fail_open,
        decision_seconds=given.admission.decision_seconds,
    )  # fmt: skip
    if as_json:
        about_token = {} if token_id is None else {"token_id": token_id, "tokens_before": before}
        print_json({"cert": str(cert), "key": str(key), "configuration": yaml.safe_load(text), **about_token})
        return
    click.echo(text, nl=False)
    made = "is there already and is used" if is_there else f"is made for {', '.join(hosts)}"
    click.echo(f"The pair {made}. Settings: enforcer: {{tls: {{cert: {cert}, key: {key}}}}}", err=True)
    if token_id is not None:
        click.echo(f"The token in it is new; its id is {token_id}.", err=True)
    if before:
        click.echo("Once this is applied, revoke what was made for it before:", err=True)
        for one in before:
            click.echo(f"  credits token revoke {one}", err=True)


def _source(given: Settings, cluster: str | None) -> KubernetesSource:
    """The source of the cluster, or its defaults where another source meters it."""
    from config.problems import did_you_mean
    from config.sources import KubernetesSource

    found: dict[str, Any] = {one.cluster: one for one in given.sources if isinstance(one, KubernetesSource)}
    if not found:
        found = {one.cluster: KubernetesSource(name="kubernetes", cluster=one.cluster) for one in given.sources}
    names = sorted(found)
    if cluster is None and len(names) != 1:
        raise click.UsageError(f"name the --cluster: one of {', '.join(names)}")
    chosen = names[0] if cluster is None else cluster
    if chosen not in found:
        raise click.UsageError(f"{given.path} has no cluster {chosen!r}{did_you_mean(chosen, names)}")
    source: KubernetesSource = found[chosen]
    return source


def _place(service: str | None, namespace: str | None, url: str | None) -> tuple[tuple[str, str] | None, list[str]]:
    """(namespace and name of the Service, names of the certificate)."""
    if url is not None:
        if service or namespace:
            raise click.UsageError("give either a --url, or a --service and its --namespace")
        try:
            parts = urlsplit(url)
            host = parts.hostname if parts.port != 0 else None
        except ValueError:
            host = None
        # The API server takes neither a user, a query nor a fragment, and the path is ours.
        if not host or parts.scheme != "https" or url.rstrip("/") != f"https://{parts.netloc}" or "@" in parts.netloc:
            raise click.UsageError(f"--url {url!r}: write it like https://credits.example.org:9471")
        return None, [host]
    if not service or not namespace:
        raise click.UsageError("say where the enforcer is reached: --service and --namespace, or --url")
    for option, given in (("--service", service), ("--namespace", namespace)):
        if _LABEL.fullmatch(given) is None:
            raise click.UsageError(f"{option} {given!r}: a name of Kubernetes has only a-z, 0-9 and - inside")
    name = f"{service}.{namespace}"
    return (namespace, service), [f"{name}.svc", f"{name}.svc.cluster.local", name, service]


COMMANDS = (webhook,)

"""The section `console`: what is refused, and what the rules make of what a provider says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from config.console import Oidc, OidcRule
from config.fields import Refused
from config.problems import ConfigError
from config.settings import load_settings

RULE = {"claim": "groups", "value": "admins", "role": "admin"}
OIDC = {"issuer": "https://id.example.org", "client_id": "credits", "rules": [RULE]}


def load(tmp_path: Path, console: dict[str, Any]) -> Any:
    file = tmp_path / "settings.yaml"
    file.write_text(yaml.safe_dump({"console": console}))
    return load_settings(file, {"SECRET": "s3cret"}).console


def test_without_the_section_people_sign_in_by_token_for_half_a_day(tmp_path: Path) -> None:
    console = load(tmp_path, {})
    assert (
        console.session_hours, console.idle_minutes, console.public_url, console.oidc,
    ) == (12.0, 60.0, None, None)  # fmt: skip


def test_a_provider_with_its_rules_and_a_secret_from_the_environment(tmp_path: Path) -> None:
    console = load(
        tmp_path, {"public_url": "https://credits.example.org", "oidc": {**OIDC, "client_secret_env": "SECRET"}}
    )
    assert console.oidc.client_secret.read() == "s3cret"
    assert "s3cret" not in repr(console)
    assert console.oidc.rules == (OidcRule(claim="groups", value="admins", role="admin"),)


@pytest.mark.parametrize(
    ("console", "word"),
    [
        ({"oidc": OIDC}, "add public_url"),
        ({"public_url": "https://credits.example.org/x"}, "more than scheme, host and port"),
        ({"public_url": "https://x", "oidc": {**OIDC, "issuer": "http://id.example.org"}}, "use https://"),
        ({"public_url": "https://x", "oidc": {**OIDC, "scopes": ["email"]}}, "without openid"),
        ({"public_url": "https://x", "oidc": {**OIDC, "rules": []}}, "no rules"),
        ({"public_url": "https://x", "oidc": {**OIDC, "rules": [{**RULE, "role": "owner"}]}}, "add org"),
        ({"public_url": "https://x", "oidc": {**OIDC, "rules": [{**RULE, "org": "acme"}]}}, "leave org out"),
        (
            {"public_url": "https://x", "oidc": {**OIDC, "rules": [{**RULE, "role": "owner", "org": "{1}"}]}},
            "{1} in org",
        ),
        ({"public_url": "https://x", "oidc": {**OIDC, "rules": [{**RULE, "role": "scheduler"}]}}, "admin, owner"),
        ({"idle_minutes": 0}, "minutes"),
    ],
)
def test_what_cannot_be_is_refused_with_what_would_be_right(tmp_path: Path, console: dict[str, Any], word: str) -> None:
    with pytest.raises(ConfigError) as refused:
        load(tmp_path, console)
    assert word in str(refused.value)


def oidc(*rules: OidcRule) -> Oidc:
    return Oidc(issuer="https://id.example.org", client_id="credits", rules=rules)


def test_every_rule_that_fits_counts_once() -> None:
    rules = oidc(
        OidcRule(claim="groups", value="credits-admins", role="admin"),
        OidcRule(claim="groups", value="org-*-owners", role="owner", org="{1}"),
        OidcRule(claim="groups", value="org-*-*", role="viewer", org="{1}"),
        OidcRule(claim="groups", value="org-acme-?wners", role="owner", org="acme"),
    )
    found = rules.roles_of({"groups": ["org-acme-owners", "org-globex-staff", "elsewhere"]})
    assert found == [("owner", "acme"), ("viewer", "acme"), ("viewer", "globex")]
    assert rules.roles_of({"groups": "credits-admins"}) == [("admin", None)]
    assert rules.roles_of({}) == []
    assert rules.roles_of({"groups": {"a": 1}}) == []
    assert rules.roles_of({"groups": "xcredits-admins"}) == []


def test_a_claim_within_a_claim_and_one_whose_name_has_dots() -> None:
    nested = oidc(OidcRule(claim="realm_access.roles", value="admin", role="admin"))
    assert nested.roles_of({"realm_access": {"roles": ["user", "admin"]}}) == [("admin", None)]
    assert nested.roles_of({"realm_access": ["admin"]}) == []
    named = oidc(OidcRule(claim="https://x.example/roles", value="admin", role="admin"))
    assert named.roles_of({"https://x.example/roles": "admin"}) == [("admin", None)]


def test_an_address_counts_only_when_the_provider_verified_it() -> None:
    rules = oidc(OidcRule(claim="email", value="*@acme.com", role="viewer", org="acme"))
    assert rules.roles_of({"email": "ann@acme.com", "email_verified": True}) == [("viewer", "acme")]
    assert rules.roles_of({"email": "ann@acme.com", "email_verified": "true"}) == []
    assert rules.roles_of({"email": "ann@acme.com"}) == []


def test_an_org_in_a_rule_needs_as_many_stars() -> None:
    with pytest.raises(Refused):
        OidcRule(claim="groups", value="*", role="viewer", org="{2}")

"""All pages of the cluster's administrators."""

from __future__ import annotations

from typing import Final

from api.routes import Route
from config.settings import Settings
from config.source_list import source_type
from console.audit_page import AuditPage
from console.correct_page import CorrectPage
from console.desk import Desk
from console.grant_page import GrantPage
from console.org_settings import OrgSettings
from console.orgs_page import OrgsPage
from console.rates_page import RatesPage
from console.shadow_page import ShadowPage
from console.sources_page import SourcesPage
from console.stages_page import StagesPage
from console.token_pages import TokenPages
from console.transfer_page import TransferPage

ADMIN: Final = ("admin",)


def admin_calls(desk: Desk, given: Settings) -> list[Route]:
    """The calls of these pages."""
    org = "/console/orgs/{org}"
    settings, grant, tokens = OrgSettings(desk), GrantPage(desk), TokenPages(desk)
    correct, transfer = CorrectPage(desk), TransferPage(desk)
    sources = [(source.name, source_type(source), source.cluster) for source in given.sources]
    calls = [
        ("GET", "/console/orgs", OrgsPage(desk).page),
        ("GET", "/console/new-org", settings.new),
        ("POST", "/console/new-org", settings.create),
        ("GET", f"{org}/settings", settings.edit),
        ("POST", f"{org}/settings", settings.save),
        ("GET", f"{org}/grant", grant.page),
        ("POST", f"{org}/grant", grant.grant),
        ("GET", f"{org}/correct", correct.page),
        ("POST", f"{org}/correct", correct.correct),
        ("GET", f"{org}/transfer", transfer.page),
        ("POST", f"{org}/transfer", transfer.transfer),
        ("GET", "/console/rates", RatesPage(desk, [source.cluster for source in given.sources]).page),
        ("GET", "/console/sources", SourcesPage(desk, sources, given.metering.interval_seconds).page),
        ("GET", "/console/stages", StagesPage(desk).page),
        ("GET", "/console/shadow", ShadowPage(desk, given.admission.mode, given.admission.clusters).page),
        ("GET", "/console/tokens", tokens.page),
        ("POST", "/console/tokens", tokens.create),
        ("GET", "/console/tokens/revoke", tokens.ask),
        ("POST", "/console/tokens/revoke", tokens.revoke),
        ("GET", "/console/audit", AuditPage(desk).page),
    ]
    return [Route(method, path, handler, ADMIN, "session") for method, path, handler in calls]

"""Names of the ledger's keys. All keys of an org carry its hash tag, so its scripts run on one cluster node."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from urllib.parse import quote

META = "credits:meta"
"""Hash: schema, ledger_id, epoch_us, forgotten_us (runs that were charged up to then at most may have no record),
by_day_us (before it amounts are kept by day), charge_back:CLUSTER (since when charges are passed on)."""
ORGS = "credits:orgs"
"""Set of all org names."""
SOURCES = "credits:sources"
"""Hash: source -> last committed snapshot instant (us)."""
UNBILLABLE = "credits:unbillable"
"""Hash: source US reason -> how many workloads could not be charged."""
TOKENS = "credits:tokens"
"""Hash: token id -> record (JSON, with the SHA-256 of the token)."""
TOKENS_SYNCED = "{credits:tokens}:synced"
"""Hash, on the node of the tokens: written after them, to wait for the disk."""
TOKENS_USED = "credits:tokens:used"
"""Hash: token id -> instant (us) of its last use, to the minute."""
REFUSALS = "credits:refusals"
"""Stream of refusals of orgs that the ledger does not know; bounded."""
ADMISSIONS = "credits:admissions"
"""Hash: enforcer US decision US code -> how many decisions it made."""
PAYMENTS = "credits:payments"
"""Hash: the provider's id of a payment -> org US order."""
PAYMENTS_REFUSED = "credits:payments:refused"
"""Hash: why a payment was not credited -> how many."""
PAYMENTS_CHECKED = "credits:payments:checked"
"""Instant (us) up to which the provider was asked for payments."""

TOP_UPS = "credits:topups"
"""Set of the orgs that have settings of auto top-up."""

AUDIT = "credits:audit"
"""Stream of changes that concern no org: tokens, rates."""
TRANSFERS = "credits:transfers"
"""Hash: `k` and the idempotency key of a transfer -> JSON of what it was used for, kept for ever."""

EVENTS = "credits:events"
"""Stream of events to be told to others; bounded. How far each reader is, NOTICES_CURSORS says."""
EVENTS_SEEN = "{credits:events}:seen"
"""Sorted set: id of an event by the instant (ms) it was first told; on the node of the stream."""
NOTICE_ORGS = "credits:notices:orgs"
"""Set of the orgs that said whom to tell of what."""
NOTICES_CURSORS = "credits:{notices}:cursors"
"""Hash: webhook, router -> up to where in `credits:events` they are; started_ms: journals are told of from then on."""
NOTICES_JOURNALS = "credits:{notices}:journals"
"""Hash: org -> up to where its journal was told of."""
NOTICES = "credits:{notices}:waiting"
"""Hash: id -> notice (JSON) that waits to be sent."""
NOTICES_DUE = "credits:{notices}:due"
"""Sorted set: id of a notice by the instant (ms) it is to be sent."""
NOTICES_OPEN = "credits:{notices}:open"
"""Hash: group (who is told, of which kind) -> notice that still takes events."""
NOTICES_LAST = "credits:{notices}:last"
"""Hash: group -> when (ms) its last notice was sent."""
NOTIFIER = "credits:notifier"
"""Which enforcer sends notices; expires."""
REAPER = "credits:reaper"
"""Which enforcer acts on work of orgs that ran out; expires."""
COUNTED = "credits:reaper:counted"
"""How long (us) enforcers have looked at such orgs by a clock that only goes on: graces last by it."""

US = "\x1f"
"""Unit separator: joins names inside hash fields; names never contain control characters."""


def rates(cluster: str) -> str:
    """Hash of a cluster's rate history: version, clock_us, plan."""
    return f"credits:rates:{{{quote(cluster, safe='')}}}"


def session(digest: str) -> str:
    """JSON of one session of the console, by the SHA-256 of its secret; expires."""
    return f"credits:session:{digest}"


def sessions_of(person: str) -> str:
    """What sessions of a person ("": of everybody) have to carry: another one has ended all that were. Expires."""
    return f"credits:sessions:{quote(person, safe='')}"


def claims(cluster: str) -> str:
    """Hash: workload -> the org it is charged to, since when."""
    return f"credits:claims:{{{quote(cluster, safe='')}}}"


@dataclass(frozen=True, slots=True)
class OrgKeys:
    """Every key of one org."""

    tag: str

    def _key(self, name: str) -> str:
        return f"credits:{self.tag}:{name}"

    @property
    def org(self) -> str:
        """Hash: name, known, unlimited, contact, policy, settings_rev (of these), commit, budget_rev, spent, refunded,
        granted, granted:SOURCE (before anything was taken back), withdrawn, restored, expired_most, debt, debt_at
        (end of the last use that no grant paid for), mark:SOURCE, burn:SOURCE, acting, credit_line; and where there
        ever was a restricted grant: scoped, debts (JSON: class of work -> `debt|debt_at` of it), classes (RS between
        them)."""
        return self._key("org")

    @property
    def rows(self) -> str:
        """Hash: row number -> JSON [cluster, project, user, kind, resource, app]."""
        return self._key("rows")

    @property
    def spent(self) -> str:
        """Hash: row number -> micro-credits; row number + `t` -> microseconds billed; `r`: refunded."""
        return self._key("spent")

    @property
    def hours(self) -> str:
        """Sorted set of the full hours (seconds since 1970) that have a bucket."""
        return self._key("hours")

    def bucket(self, hour_us: int) -> str:
        """Hash of one hour, fields as in `spent`."""
        return self._key(f"hour:{hour_us // 1_000_000}")

    @property
    def rollups(self) -> str:
        """Hash: `d` or `m` and the start (seconds since 1970) of a day or month (UTC) -> `ok` while the sums of
        its roll-up are those of its hours, else the name of who is at work on it."""
        return self._key("rollups")

    def rollup(self, name: str) -> str:
        """Hash of one day or month, named as in `rollups`; fields as in `spent`."""
        return self._key(f"rollup:{name}")

    @property
    def forgotten(self) -> str:
        """Hash as `spent`: the part of it that no run record tells about any more."""
        return self._key("forgotten")

    @property
    def runs(self) -> str:
        """Hash: run -> record, of runs that go on."""
        return self._key("runs")

    @property
    def ended(self) -> str:
        """Hash: run -> record, of runs that ended, were last seen, or are earlier legs."""
        return self._key("ended")

    @property
    def metered(self) -> str:
        """Set of cluster US workload id: jobs and apps that `runs` has."""
        return self._key("metered")

    @property
    def grants(self) -> str:
        """Hash: idempotency key -> JSON record of the grant, kept for ever."""
        return self._key("grants")

    @property
    def purse(self) -> str:
        """Hash: grant -> `starts|expires|remaining`, of grants with something left; `|` and a JSON scope behind it
        (see ledger/scopes.py) where the grant is restricted."""
        return self._key("purse")

    @property
    def purchases(self) -> str:
        """Hash: order id -> JSON record, kept for ever."""
        return self._key("purchases")

    @property
    def payments(self) -> str:
        """Hash: the provider's id of a payment -> JSON record, kept for ever."""
        return self._key("payments")

    @property
    def withdrawals(self) -> str:
        """Hash: id -> JSON entry of the journal: what was taken back of payments, and restored; what corrections took
        back, and what was transferred to other orgs."""
        return self._key("withdrawals")

    @property
    def corrections(self) -> str:
        """Hash: idempotency key -> JSON record of the correction, kept for ever."""
        return self._key("corrections")

    @property
    def corrected(self) -> str:
        """Hash: grant -> micro-credits by which all corrections of it changed it; may be negative."""
        return self._key("corrected")

    @property
    def transfers(self) -> str:
        """Hash: idempotency key -> JSON record of a transfer to another org, kept for ever."""
        return self._key("transfers")

    @property
    def transferring(self) -> str:
        """Hash: idempotency key -> 1, of transfers to other orgs that are not done yet."""
        return self._key("transferring")

    @property
    def received(self) -> str:
        """Hash: `i` (from another org) or `b` (back from there) and the idempotency key -> `given` or `refused`."""
        return self._key("received")

    @property
    def top_up(self) -> str:
        """Hash of auto top-up: terms and card (JSON), removed_us (of the last card), order (the one in flight), seq
        (orders there were), nonce (makes their ids secret), cool_until (us), declines, paused (why), capped (the month
        it was said of), month:YYYY-MM -> micro-credits ordered in it."""
        return self._key("topup")

    @property
    def notices(self) -> str:
        """Hash: preferences (JSON): whom to tell of what; runway, budget:ID -> what was told of them last."""
        return self._key("notices")

    @property
    def holds(self) -> str:
        """Hash: hold id -> JSON record."""
        return self._key("holds")

    @property
    def hold_expiry(self) -> str:
        """Sorted set: hold id by the instant (ms) it expires."""
        return self._key("holdexp")

    def unlisted(self, name: str) -> str:
        """Token of the last holds that one who reads lists (`name`) found to be of no list any more; expires."""
        return self._key(f"unlisted:{name}")

    @property
    def hold_of(self) -> str:
        """Hash: cluster US workload id -> hold id."""
        return self._key("holdof")

    @property
    def settled(self) -> str:
        """Sorted set: id of a hold that ended as its work was charged, or was not there by then, by the instant (ms)
        from which this is forgotten. Of one that was not there also id US workload, of each that was charged by then,
        and id US with how many these are (over 2^52)."""
        return self._key("settled")

    @property
    def stages(self) -> str:
        """Hash: tier ("" for the org, else budget id) -> JSON of how far its exhaustion went."""
        return self._key("stages")

    @property
    def acted(self) -> str:
        """Hash: tier US source US workload -> what was done to it for want of credits, and when: `signal@` and the
        times of `Act`, `@` between them."""
        return self._key("acted")

    @property
    def outbox(self) -> str:
        """List of events (JSON) on their way to `credits:events`, which may be on another node."""
        return self._key("outbox")

    @property
    def admitted(self) -> str:
        """Sorted set: digest of what tells a pod apart, by the instant (us) it was last admitted."""
        return self._key("admitted")

    @property
    def held(self) -> str:
        """Hash: tier -> micro-credits in admission holds."""
        return self._key("held")

    @property
    def running(self) -> str:
        """Hash: tier -> micro-credits that running work is to have set aside, over all sources."""
        return self._key("running")

    def running_of(self, source: str) -> str:
        """Hash: tier -> micro-credits, the part of `running` that one source put in."""
        return self._key(f"running:{quote(source, safe='')}")

    @property
    def budgets(self) -> str:
        """Hash: budget id -> JSON record."""
        return self._key("budgets")

    @property
    def budget_spent(self) -> str:
        """Hash: budget id US period start (us) -> micro-credits."""
        return self._key("budgetspent")

    def charge_back(self, cluster: str) -> str:
        """Hash: `s` US user ("" is the org) -> what of its charges was passed on to the platform of a cluster;
        base: JSON, what was charged before."""
        return self._key(f"chargeback:{quote(cluster, safe='')}")

    @property
    def journal(self) -> str:
        """Stream of everything that moved credits or changed a limit; trimmed only where the settings say so."""
        return self._key("journal")

    @property
    def refusals(self) -> str:
        """Stream of refused or exceptionally allowed admissions; bounded."""
        return self._key("refusals")


@lru_cache(maxsize=65536)
def of_org(org: str) -> OrgKeys:
    """The keys of an org; any character of its name is safe in them."""
    return OrgKeys("{" + quote(org, safe="") + "}")


@lru_cache(maxsize=4096)  # the same few users come again and again
def tier_fields(project: str, user: str) -> tuple[str, str, str]:
    """Fields of `held` and `running` for the org, the project and the user in the project."""
    return "", f"p{US}{project}", f"u{US}{project}{US}{user}"

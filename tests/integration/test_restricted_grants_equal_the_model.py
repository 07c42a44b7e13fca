"""What each grant pays and what is owed for which work, against an account that is kept in another way."""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction
from itertools import pairwise

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ledger import keys
from ledger.errors import InvalidRequest
from ledger.lua import text
from ledger.org_state import Row
from ledger.plan import Correction, Plan
from ledger.scopes import SCOPES_MAX
from ledger.store import Ledger
from ledger.verify import verify
from tests.histories import HOUR, MINUTE, T0
from tests.integration.test_charges_equal_the_model import bench
from tests.integration.test_grants_pay import CREDIT, PLAN, poll

pytestmark = pytest.mark.redis

WORKS = (("one", "small"), ("one", "large"), ("two", "small"), ("two", "large"), ("two", ""))
"""(cluster, preset); the last one is storage."""
Work = tuple[str, str]


@dataclass
class Grant:
    """In minutes since T0 and micro-credits. `only`: (presets, clusters)."""

    key: str
    amount: Fraction
    starts: int
    expires: int | None
    only: tuple[frozenset[str], frozenset[str]] | None
    left: Fraction = Fraction(0)

    def pays(self, work: Work | None) -> bool:
        if self.only is None:
            return True
        if work is None:
            return False
        presets, clusters = self.only
        return (not presets or work[1] in presets) and (not clusters or work[0] in clusters)

    def rank(self) -> tuple[object, ...]:
        return self.expires is None, self.expires, self.only is None, self.starts, self.key


@dataclass
class Owed:
    amount: Fraction = Fraction(0)
    until: int = 0


@dataclass
class Book:
    grants: list[Grant] = field(default_factory=list)
    owed: dict[Work | None, Owed] = field(default_factory=dict)
    spent: Fraction = Fraction(0)
    is_told_apart: bool = False

    def _pay(self, work: Work | None, due: Fraction, since: int, until: int) -> Fraction:
        for grant in sorted(self.grants, key=Grant.rank):
            if grant.pays(work) and grant.starts < until and (grant.expires is None or grant.expires > since):
                paid = min(due, grant.left)
                grant.left -= paid
                due -= paid
        return due

    def _narrow(self, work: Work | None) -> tuple[int, str]:
        grants = [grant for grant in self.grants if grant.only is not None and grant.left and grant.pays(work)]
        return len(grants), "" if work is None else "\x1f".join(work)

    def settle(self, until: int) -> None:
        for work in sorted(self.owed, key=self._narrow):
            debt = self.owed[work]
            debt.amount = self._pay(work, debt.amount, debt.until, until)

    def use(self, since: int, until: int, amounts: dict[Work, Fraction]) -> None:
        known: dict[Work | None, Fraction] = {}
        for work, amount in amounts.items():
            name = work if self.is_told_apart else None
            known[name] = known.get(name, Fraction(0)) + amount
        unpaid: dict[Work | None, Fraction] = {}
        for name in sorted(known, key=self._narrow):
            self.spent += known[name]
            unpaid[name] = self._pay(name, known[name], since, until)
        self.settle(until)
        for name, amount in unpaid.items():
            if amount:
                debt = self.owed.setdefault(name, Owed())
                debt.until = max(debt.until, until) if debt.amount or name is None else until
                debt.amount += amount


def scopes_of(grants: list[Grant], now: int) -> set[object]:
    return {g.only for g in grants if g.only and g.left and (g.expires is None or g.expires > now)}


restrictions = st.sampled_from(
    [None, None]
    + [(frozenset(presets), frozenset(clusters)) for presets in ((), ("small",), ("large",), ("small", "large"))
       for clusters in ((), ("one",), ("two",)) if presets or clusters]
)  # fmt: skip
amounts_ = st.integers(1, 40)
grants_ = st.tuples(
    st.just("grant"), st.integers(1, 120), st.sampled_from([-200, -60, 0, 0, 30]),
    st.sampled_from([None, None, 40, 90, 250]), restrictions,
)  # fmt: skip
uses_ = st.tuples(
    st.just("use"), st.integers(-120, 0), st.integers(1, 60),
    st.dictionaries(st.sampled_from(WORKS), amounts_, min_size=1),
)  # fmt: skip
more = st.one_of(
    uses_, uses_, grants_, st.tuples(st.just("wait"), st.integers(1, 90)),
    st.tuples(st.just("correct"), st.integers(1, 30)),
)  # fmt: skip
acts = st.builds(
    lambda first, then: first + then, st.lists(grants_, max_size=5), st.lists(more, min_size=4, max_size=20)
)
GPU = frozenset(["large"]), frozenset[str]()
USED = {("one", "large"): 5}


def _row(work: Work) -> Row:
    cluster, preset = work
    return Row(cluster, "vision", "ann", "job" if preset else "storage", preset or "default", "")


async def _left(ledger: Ledger) -> dict[str, int]:
    purse = await ledger.client.hgetall(keys.of_org("acme").purse)
    return {text(key): int(entry.split(b"|")[2]) for key, entry in purse.items()}


async def _owed(ledger: Ledger) -> dict[Work | None, int]:
    fields = {text(k): text(v) for k, v in (await ledger.client.hgetall(keys.of_org("acme").org)).items()}
    found: dict[Work | None, int] = {None: int(fields.get("debt", 0))}
    for name, debt in msgspec.json.decode(fields.get("debts", "{}")).items():
        _, cluster, preset = name.split("\x1f")
        found[cluster, preset] = int(debt.split("|")[0])
    return {work: amount for work, amount in found.items() if amount}


@given(acts=acts)
# What is owed is owed for the last use that was not paid, whichever was charged last; paid, it is forgotten.
@example(acts=[("grant", 1, 0, None, GPU), ("use", -10, 20, USED), ("use", -100, 5, USED), ("grant", 9, -50, 30, GPU)])
@example(
    acts=[("grant", 1, 0, None, GPU), ("use", -10, 10, USED), ("grant", 4, 0, None, None), ("use", -100, 5, USED),
     ("grant", 9, -99, 5, GPU)]
)  # fmt: skip
async def test_every_grant_pays_what_it_is_for(acts: list[tuple], valkey_url: str) -> None:  # type: ignore[type-arg]
    """Charges come in any order, for any time; slots are cut where grants that expire begin and end."""
    clock, now, book = [T0], 240, Book()
    async with bench(valkey_url, clock, epoch=T0) as it:
        ledger = it.ledger
        await ledger.accounts.upsert("acme", who="test")
        for number, (act, *arguments) in enumerate(acts):
            clock[0] = T0 + now * MINUTE
            if act == "grant":
                amount, shift, length, only = arguments
                starts = max(0, now + shift)
                expires = None if length is None else starts + length
                presets, clusters = only or ((), ())
                full = only is not None and only not in scopes_of(book.grants, now)
                full = full and len(scopes_of(book.grants, now)) == SCOPES_MAX
                given_ = ledger.accounts.grant(
                    "acme", amount, key=f"{number:03}", who="test", effective_us=T0 + starts * MINUTE,
                    expires_us=None if expires is None else T0 + expires * MINUTE, presets=presets, clusters=clusters,
                )  # fmt: skip
                if full:
                    with pytest.raises(InvalidRequest, match="different ways"):
                        await given_
                    continue
                await given_
                book.is_told_apart = book.is_told_apart or only is not None
                book.grants.append(Grant(f"{number:03}", Fraction(amount), starts, expires, only, Fraction(amount)))
            elif act == "use":
                shift, length, used = arguments
                state = await ledger.charging.load("acme")
                since, until = now + shift, now + shift + length
                edges = [(edge - T0) // MINUTE for edge in state.grant_edges]
                hours = [minute for minute in range(since, until) if not (T0 + minute * MINUTE) % HOUR]
                cuts = sorted({since, until, *(cut for cut in edges + hours if since < cut < until)})
                plan = Plan("acme", "test")
                for begin, end in pairwise(cuts):
                    for work, amount in used.items():
                        before = len(state.rows)
                        row = state.row_number(_row(work))
                        plan.new_rows += [row] if row == before else []
                        plan.add((T0 + begin * MINUTE, T0 + end * MINUTE), row, amount, MINUTE)
                    book.use(begin, end, {work: Fraction(amount) for work, amount in used.items()})
                assert await ledger.charging.commit(plan, state)
            elif act == "correct":
                state = await ledger.charging.load("acme")
                if not state.rows:
                    continue
                plan = Plan("acme", "test", corrections=[Correction("w", state.rows[0], arguments[0], "shorter")])
                plan.settled.append(("", "none"))
                assert await ledger.charging.commit(plan, state)
                key = f"correction:{state.token}:0"
                book.grants.append(Grant(key, Fraction(arguments[0]), 0 - 10**6, None, None, Fraction(arguments[0])))
            else:
                now += arguments[0]
                clock[0] = T0 + now * MINUTE
            book.settle(now + 1)
            balance = await ledger.accounts.balance("acme")
            assert await _left(ledger) == {grant.key: grant.left for grant in book.grants if grant.left}
            assert await _owed(ledger) == {work: debt.amount for work, debt in book.owed.items() if debt.amount}
            assert balance.spent_micro == book.spent
            assert balance.owed_micro == sum(debt.amount for debt in book.owed.values())
            begun = [grant for grant in book.grants if grant.starts <= now]
            live = [grant for grant in begun if grant.expires is None or grant.expires > now]
            assert balance.available_micro == sum(g.left for g in live) - balance.owed_micro
            restricted: dict[object, Fraction] = {}
            for grant in live:
                if grant.only is not None and grant.left:
                    restricted[grant.only] = restricted.get(grant.only, Fraction(0)) + grant.left
            assert {
                (frozenset(scope.presets), frozenset(scope.clusters)): micro
                for scope, micro in balance.restricted.items()
            } == restricted
        differences = (await verify(ledger))["differences"]
        # The plans above have no runs behind them, and give back what rows do not tell.
        ours = ("granted", "granted by", "spent", "grant ", "held", "to be held")
        assert [d for d in differences if d["what"].startswith(ours)] == []


END = 150
minutes_ = st.integers(0, 180)
given_grants = st.builds(
    lambda amount, a, b, only: (amount, min(a, b), max(a, b) if a != b else None, only),
    st.integers(1, 120), minutes_, minutes_, st.sampled_from([None, "p", "p", "q"]),
)  # fmt: skip


@given(grants=st.lists(given_grants, max_size=5), polls=st.lists(st.integers(1, END), max_size=6, unique=True))
async def test_polling_never_changes_what_restricted_grants_pay(
    grants: list[tuple[int, int, int | None, str | None]], polls: list[int], valkey_url: str
) -> None:
    """A job of a credit a minute, by real rounds, against an account by the minute."""
    clock = [T0]
    async with bench(valkey_url, clock) as it:
        await it.ledger.rates.publish(PLAN)
        for n, (amount, starts, expires, only) in enumerate(grants):
            await it.ledger.accounts.grant(
                "acme", amount * CREDIT, key=f"{n:02}", who="t", effective_us=T0 + starts * MINUTE,
                expires_us=None if expires is None else T0 + expires * MINUTE, presets=[only] if only else (),
            )  # fmt: skip
        for minute in sorted(polls):
            await poll(it, clock, T0 + minute * MINUTE)
        await poll(it, clock, T0 + 180 * MINUTE, T0 + END * MINUTE)
        clock[0] = T0 + 4 * HOUR
        balance = await it.ledger.accounts.balance("acme")
        found = await _left(it.ledger), await _owed(it.ledger), balance.spent_micro
        report = await verify(it.ledger)
        assert report["ok"], report["differences"]
    rest = [amount for amount, *_ in grants]
    order = sorted(range(len(grants)), key=lambda i: (grants[i][2] or 10**9, not grants[i][3], grants[i][1], i))
    debt = 0
    for minute in range(240):
        debt += minute < END
        for i in order:
            _, starts, expires, only = grants[i]
            if starts <= minute and (expires is None or minute < expires) and only != "q":
                paid = min(rest[i], debt)
                rest[i] -= paid
                debt -= paid
    work = ("default", "p") if any(only for *_, only in grants) else None
    assert found == (
        {f"{i:02}": left * CREDIT for i, left in enumerate(rest) if left},
        {work: debt * CREDIT} if debt else {},
        END * CREDIT,
    )


async def test_a_round_computed_before_the_first_restricted_grant_is_computed_again(valkey_url: str) -> None:
    """What an exporter knew without telling work apart is not charged as work of no class."""
    clock = [T0]
    async with bench(valkey_url, clock) as it:
        await it.ledger.rates.publish(PLAN)
        await poll(it, clock, T0)
        state = await it.ledger.charging.load("acme")
        await it.ledger.accounts.grant("acme", 100 * CREDIT, key="k", who="t", presets=["p"])
        plan = Plan("acme", "other", running={"": 5})
        assert not await it.ledger.charging.commit(plan, state)
        await poll(it, clock, T0 + 30 * MINUTE)  # the exporter's own state is as old
        assert await _left(it.ledger) == {"k": 70 * CREDIT}
        running = await it.ledger.client.hgetall(keys.of_org("acme").running)
        assert {text(field): int(micro) for field, micro in running.items() if not field.startswith((b"p", b"u"))} == {
            "": 15 * CREDIT, "c\x1fdefault\x1fp": 15 * CREDIT,
        }  # fmt: skip
        assert (await verify(it.ledger))["ok"]

"""The words of a refusal, the same everywhere: what ran out, what is left, what the job needs, and what helps."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache
from zoneinfo import ZoneInfo

from ledger.budgets import Budget
from ledger.clock import format_time, from_us
from ledger.money import MICRO, format_micro
from ledger.scopes import Scope

_PERIODS = {"day": "daily", "week": "weekly", "month": "monthly", "total": "total"}


@dataclass(frozen=True, slots=True)
class Circumstances:
    """What else is known of an org: whom to ask, what it burns an hour, where credits are bought, how far below zero it
    may go, what it has left that is not for this work, and whether only the set-aside of running work is short."""

    contact: str | None = None
    burn_micro: int = 0
    buy_url: str | None = None
    credit_line_micro: int = 0
    not_for_this: Sequence[tuple[Scope, int]] = ()
    only_running_is_short: bool = False


UNKNOWN = Circumstances()


def credits_text(micro: int) -> str:
    """`1 credit`, `0.5 credits`."""
    return f"{format_micro(micro)} credit{'' if micro == MICRO else 's'}"


def no_credits(org: str, left_micro: int, required_micro: int, about: Circumstances = UNKNOWN) -> str:
    """The org cannot pay."""
    line = about.credit_line_micro
    left = f"has {credits_text(left_micro)} left" if left_micro > 0 else "has no credits left"
    if line > 0:
        if left_micro + line <= 0:
            left = f"has used up its credits and its credit line of {credits_text(line)}"
        elif left_micro > 0:
            left += f" and a credit line of {credits_text(line)}"
        else:
            left = f"has {credits_text(left_micro + line)} of its credit line of {format_micro(line)} left"
    elif about.only_running_is_short:
        left = "has no credits left beside what its running work needs"
    elif left_micro < 0 and not about.not_for_this:
        left = f"is {credits_text(-left_micro)} short"
    if about.not_for_this:
        others = "; ".join(f"{credits_text(micro)} for {only_text(*scope)}" for scope, micro in about.not_for_this)
        left += f" for this (what else is left is restricted: {others})"
    burn = f" and its running work uses {credits_text(about.burn_micro)} an hour" if about.burn_micro > 0 else ""
    return f"Org {org} {left}{burn}; this needs {credits_text(required_micro)} to start. {_who_helps(org, about)}"


def only_text(presets: Sequence[str], clusters: Sequence[str]) -> str:
    """What a restricted grant is for: `presets a, b in cluster c`."""
    parts = [
        f"{what}{'s' if len(names) > 1 else ''} {', '.join(names)}"
        for what, names in (("preset", presets), ("cluster", clusters))
        if names
    ]
    return " in ".join(parts) if presets else f"work in {parts[0]}"


def budget_exhausted(
    budget: Budget, at_us: int, left_micro: int, required_micro: int, about: Circumstances = UNKNOWN, org: str = ""
) -> str:
    """A budget of the project, or of the user in it, does not allow it now."""
    left = f"{format_micro(max(0, left_micro))} of {credits_text(budget.limit_micro)} left"
    uses = f" and org {org}'s running work uses {credits_text(about.burn_micro)} an hour"
    burn = uses if about.burn_micro > 0 else ""
    ends = budget.period_at(at_us)[1]
    frees = f"The budget starts anew {_local(ends, budget.timezone)}; " if ends is not None else ""
    ask = f"{about.contact or f'an owner of org {org}'} can raise it."
    if not frees:
        ask = ask[0].upper() + ask[1:]
    needs = f"this needs {credits_text(required_micro)} to start"
    return f"The {budget_text(budget.project, budget.user, budget.period)} has {left}{burn}; {needs}. {frees}{ask}"


def budget_text(project: str, user: str | None, period: str) -> str:
    """`daily budget of user ann in project vision`."""
    whose = f"project {project}" if user is None else f"user {user} in project {project}"
    return f"{_PERIODS.get(period, period)} budget of {whose}"


def unknown_org(org: str, about: Circumstances = UNKNOWN) -> str:
    """Nobody pays for it."""
    ask = about.contact or "an administrator of the cluster"
    return f"There is no org {org!r} with credits. Check the name, or ask {ask} to set it up."


def unpriced(cluster: str, what: str, name: str, known: Iterable[str]) -> str:
    """The cluster has no rate for it. `what`: preset or app."""
    names = sorted(known)
    near = get_close_matches(name, names, 1)
    if near:
        hint = f"Did you mean {near[0]}?"
    elif 0 < len(names) <= 12:
        hint = f"There are rates for {', '.join(names)}."
    elif names:
        hint = "An administrator of the cluster can set one."
    else:
        hint = f"It has none for any {what}: check the cluster's name, or ask an administrator to set them."
    return f"Cluster {cluster} has no rate for {what} {name!r}, so it cannot be charged. {hint}"


def ledger_unavailable() -> str:
    """Nobody can say what is left."""
    return "Credits cannot be checked right now, so nothing is started. Please try again in a minute."


def let_through(cluster: str) -> str:
    """Allowed though nobody could say what is left."""
    return f"Credits of cluster {cluster} cannot be checked right now; this starts anyway and is charged later."


def started_anew(refusal: str) -> str:
    """Allowed because the same work was admitted before."""
    return f"This was admitted before, so it starts anew all the same. {refusal}"


def shadowed(refusal: str) -> str:
    """Allowed because refusals are only tried out."""
    return f"This starts, since refusals are only tried out here; it would be refused: {refusal}"


def admitted(required_micro: int, org: str, left_micro: int | None, count: int = 1) -> str:
    """It may start; `left_micro` is None where nothing is set aside: a question only."""
    if required_micro == 0:
        return f"{count} units cost nothing." if count > 1 else "This costs nothing."
    if left_micro is None:
        return f"This may start; {credits_text(required_micro)} would be set aside."
    return f"{set_aside(required_micro)}; org {org} then has {credits_text(left_micro)} left."


@lru_cache(maxsize=1024)  # much work needs the same
def set_aside(required_micro: int) -> str:
    """Without a full stop."""
    return f"{credits_text(required_micro)} {'is' if required_micro == MICRO else 'are'} set aside to start"


def running_out(
    whose: str, since_us: int, then: str, until_us: int | None, org: str, about: Circumstances = UNKNOWN,
    *, is_budget: bool = False, renews_us: int | None = None,
) -> str:  # fmt: skip
    """To work that runs: why it is suspended or stopped (`then`), now or at `until_us`, and how it goes on.

    `whose`: the org, or the budget (`is_budget`) in words; `renews_us`: when that starts anew.
    """
    why = f"{whose[:1].upper()}{whose[1:]} has too few credits for what runs since {_second(since_us)}."
    verb = {"suspend": "suspended", "stop": "stopped"}[then]
    back = f"{'goes on by itself' if then == 'suspend' else 'can be submitted again'} once there are credits"
    if until_us is None:
        what = f"So this was {verb}; it {back}."
    else:
        what = f"Unless credits come, this will be {verb} at {_second(until_us)}, so save your work; it {back}."
    frees = f"It starts anew at {_second(renews_us)}; " if renews_us is not None else ""
    ask = f"{frees}{about.contact or f'an owner of org {org}'} can raise it." if is_budget else _who_helps(org, about)
    return f"{why} {what} {ask[0].upper()}{ask[1:]}"


def _second(us: int) -> str:
    return format_time(us // 1_000_000 * 1_000_000)


def goes_on() -> str:
    """Allowed without a hold: its use is counted as it runs."""
    return "This runs and is charged already, so nothing more is set aside for it."


def unknown_org_let_in(org: str) -> str:
    """Allowed without a hold: there is no balance to hold it from."""
    return f"Nobody has set up org {org!r} here; this may start all the same, and is charged to it."


def _who_helps(org: str, about: Circumstances) -> str:
    ask = about.contact or f"an owner of org {org} or an administrator of the cluster"
    buy = f", or buy credits at {about.buy_url}" if about.buy_url else ""
    return f"Ask {ask} for credits{buy}."


def _local(us: int, zone: str) -> str:
    """`on 2026-12-01 00:00 (Europe/Berlin)`."""
    if zone == "UTC":
        return f"at {format_time(us)}"
    return f"on {from_us(us).astimezone(ZoneInfo(zone)):%Y-%m-%d %H:%M} ({zone})"

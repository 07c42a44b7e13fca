"""Budgets: caps on what a project, or a user in a project, may spend in a period."""

from __future__ import annotations

import msgspec

from ledger.keys import US
from ledger.periods import bounds


class Budget(msgspec.Struct, frozen=True):
    """A cap. `user` None: on the whole project. `limit_micro` counts what is spent in the current period."""

    id: str
    project: str
    user: str | None
    limit_micro: int
    period: str
    timezone: str = "UTC"
    week_start: int = 0

    def covers(self, project: str, user: str) -> bool:
        """Whether what this user in this project spends counts."""
        return project == self.project and (self.user is None or user == self.user)

    def period_at(self, us: int) -> tuple[int, int | None]:
        """[start, end) in microseconds of the period an instant is in."""
        return bounds(self.period, self.timezone, self.week_start, us)

    def field_at(self, us: int) -> str:
        """Field of `budgetspent` that counts the period an instant is in."""
        return f"{self.id}{US}{self.period_at(us)[0]}"


def budget_id(project: str, user: str | None, period: str) -> str:
    """One budget per project (or user in it) and period."""
    return US.join((project, user if user is not None else "", "u" if user is not None else "p", period))


def decode_budgets(fields: dict[bytes, bytes]) -> tuple[Budget, ...]:
    """All budgets of an org, from its hash."""
    return tuple(msgspec.json.decode(value, type=Budget) for _, value in sorted(fields.items()))

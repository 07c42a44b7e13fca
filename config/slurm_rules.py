"""Rules that say what a Slurm job is in credits' words: account -> org and project, size -> preset.

Pure, and shared: the exporter applies them to jobs that run, the enforcer to jobs that are submitted.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

ASSOCIATIONS_COMMAND: Final = ("sacctmgr", "-nP", "show", "assoc", "format=cluster,account,user,parentname")
"""What prints the account tree for `parse_parents`."""

_ROOT: Final = "root"
_PLACEHOLDER = re.compile(r"\{([^{}]*)\}")
_COUNT: Final = re.compile(r"\d+[kmgtp]?", re.IGNORECASE | re.ASCII)
_UNITS: Final[dict[str, int]] = {unit: 1024**power for power, unit in enumerate("kmgtp", start=1)}


@dataclass(frozen=True, slots=True)
class AccountRule:
    """Who pays for an account. `account` is a pattern (`*`, `?`); `org` and `project` may use `{account}`,
    `{parent}`, `{top}` (its ancestor right below the root) and `{1}`, `{2}` ...: what each `*` stood for.

    Raises: ValueError for a placeholder that does not exist.
    """

    account: str
    org: str
    project: str = ""

    def __post_init__(self) -> None:
        stars = [str(number) for number in range(1, self.account.count("*") + 1)]
        for text in (self.org, self.project):
            _check_placeholders(text, ("account", "parent", "top", *stars))


@dataclass(frozen=True, slots=True)
class PresetRule:
    """Jobs of this partition, QOS and GRES are this preset, which may use `{partition}` and `{qos}`.

    Patterns use `*` and `?`. `gres` is tried on each of the job's GRES by name (`gpu`, `gpu:a100`) and with
    its count in the whole job (`gpu=2`, `gpu:a100=2`); "" is a job without GRES; None: any job.
    Raises: ValueError for a placeholder that does not exist.
    """

    preset: str
    partition: str = "*"
    qos: str = "*"
    gres: str | None = None

    def __post_init__(self) -> None:
        _check_placeholders(self.preset, ("partition", "qos"))


@dataclass(frozen=True, slots=True)
class SlurmRules:
    """Ordered: the first rule that matches decides; where rules are given and none matches, nobody pays.

    Without account rules an account is a project of the org at the top of its branch of the account tree
    (of itself, where there is no tree). Without preset rules a preset is its partition.
    """

    accounts: tuple[AccountRule, ...] = ()
    presets: tuple[PresetRule, ...] = ()


def owner_of(account: str, rules: SlurmRules, parents: Mapping[str, str]) -> tuple[str, str] | None:
    """(org, project) of an account by the first rule that takes it; None where none does.

    `parents` maps each account to its parent, as `parse_parents` gives it; it is empty where there is no
    account tree. An account that a tree lacks has no top, so none is made up for it.
    """
    for rule in rules.accounts or _TOP_OWNS:
        match = _pattern(rule.account).fullmatch(account)
        if match is not None:
            if parents and account not in parents and account != _ROOT and _asks_tree(rule):
                return None
            top = _top(account, parents)
            known = {"account": account, "parent": parents.get(account, account), "top": top}
            known |= {str(number): text for number, text in enumerate(match.groups(), start=1)}
            return _filled(rule.org, known), _filled(rule.project, known)
    return None


def preset_of(partition: str, qos: str, gres: Mapping[str, int], rules: SlurmRules) -> str | None:
    """The preset of a job in one partition by the first rule that takes it; None where none does.

    `gres` counts the whole job; an unknown QOS is "".
    """
    labels = [label for name, count in gres.items() if count for label in (name, f"{name}={count}")]
    for rule in rules.presets or _PARTITIONS:
        if _pattern(rule.partition).fullmatch(partition) is None or _pattern(rule.qos).fullmatch(qos) is None:
            continue
        wanted = rule.gres
        fits = not labels if wanted == "" else any(_pattern(wanted or "*").fullmatch(label) for label in labels)
        if wanted is None or fits:
            return _filled(rule.preset, {"partition": partition, "qos": qos}) or None
    return None


def parse_parents(text: str, cluster: str = "") -> dict[str, str]:
    """The account tree out of what ASSOCIATIONS_COMMAND prints: account -> parent, the root left out.

    `cluster` is Slurm's ClusterName; one database may hold several clusters. "": take all.
    """
    parents = {}
    for line in text.splitlines():
        where, account, user, parent = ([*line.split("|"), "", "", ""])[:4]
        if account and parent and not user and account != _ROOT and cluster in ("", where):
            parents[account] = parent
    return parents


def gres_of_tres(tres: str) -> dict[str, int]:
    """GRES out of a list of allocated TRES: `cpu=4,gres/gpu=2,gres/gpu:a100=2` -> gpu 2, gpu:a100 2.

    Raises: ValueError for a count that is none.
    """
    found = {}
    for item in tres.split(","):
        name, _, count = item.partition("=")
        if name.startswith("gres/"):
            found[name.removeprefix("gres/")] = _count(count)
    return found


def gres_of_request(request: str, times: int = 1) -> dict[str, int]:
    """GRES out of what a job asks for (`gres:gpu:a100:2`, `gpu:2,shard`), each counted `times`.

    A typed one counts as its plain name too, as in what Slurm then allocates.
    Raises: ValueError for text of another shape.
    """
    found: dict[str, int] = {}
    for item in filter(None, (part.strip() for part in re.sub(r"\([^)]*\)", "", request).split(","))):
        words = re.split("[:=]", re.sub("^gres[:/]", "", item))
        count = times * (_count(words.pop()) if _COUNT.fullmatch(words[-1]) else 1)
        if not all(words) or not 1 <= len(words) <= 2:
            raise ValueError(f"{item!r} is not a GRES like gpu:a100:2")
        if words == ["none"]:
            continue
        for name in dict.fromkeys((words[0], ":".join(words))):
            found[name] = found.get(name, 0) + count
    return found


def needs_tree(rules: SlurmRules) -> bool:
    """Whether some rule asks for an account's ancestors."""
    return any(_asks_tree(rule) for rule in rules.accounts or _TOP_OWNS)


def _asks_tree(rule: AccountRule) -> bool:
    return any(word in rule.org + rule.project for word in ("{top}", "{parent}"))


def _top(account: str, parents: Mapping[str, str]) -> str:
    """The ancestor right below the root; a loop in the tree ends at the account itself."""
    seen = [account]
    while (parent := parents.get(seen[-1], _ROOT)) != _ROOT:
        if parent in seen:
            return account
        seen.append(parent)
    return seen[-1]


def _count(text: str) -> int:
    """`2`, `2K`, `2.50M` as an integer, units by 1024. Raises: ValueError."""
    factor = _UNITS.get(text[-1:].lower(), 1)
    digits = text if factor == 1 else text[:-1]
    if not re.fullmatch(r"\d{1,15}(\.\d{1,6})?", digits, re.ASCII):
        raise ValueError(f"{text!r} is not a count")
    whole, _, part = digits.partition(".")
    return int(whole) * factor + (int(part) * factor // 10 ** len(part) if part else 0)


@lru_cache(maxsize=1024)
def _pattern(glob: str) -> re.Pattern[str]:
    """A pattern as a regular expression; each `*` is a group and takes as little as it can."""
    special = {"*": "(.*?)", "?": "."}
    return re.compile("".join(special.get(char) or re.escape(char) for char in glob), re.DOTALL)


def _filled(text: str, known: Mapping[str, str]) -> str:
    return _PLACEHOLDER.sub(lambda match: known[match[1]], text)


def _check_placeholders(text: str, allowed: Sequence[str]) -> None:
    for word in _PLACEHOLDER.findall(text):
        if word not in allowed:
            known = ", ".join(f"{{{one}}}" for one in allowed)
            raise ValueError(f"{text!r}: there is no {{{word}}}; what may stand here: {known}")


_TOP_OWNS: Final = (AccountRule("*", "{top}", "{account}"),)
_PARTITIONS: Final = (PresetRule("{partition}"),)

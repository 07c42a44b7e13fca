"""`rates.yaml`: exact rates, steps in time, and refusals that say what would be right."""

from __future__ import annotations

import json
from contextlib import suppress
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from config.problems import ConfigError
from config.rates import check_rates, load_rates, parse_rates
from ledger.clock import format_time, parse_time
from ledger.model import RatePlan, RateTable
from ledger.money import MICRO_MAX, NANO, format_rate

ROOT = Path(__file__).parents[2]
NEW_YEAR = parse_time("2027-01-01T00:00:00Z")


def plan(text: str) -> RatePlan:
    return parse_rates(f"clusters:\n  default:\n{text}".encode(), "rates.yaml")["default"]


def refusals(text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        plan(text)
    return [str(problem) for problem in caught.value.problems]


def preset(rate: str) -> str:
    return f"    presets: {{x: {{credits_per_hour: {rate}}}}}\n"


def test_the_example_is_as_the_contract_shows_and_prices_what_the_simulated_cluster_runs():
    plans = load_rates(ROOT / "config/rates.yaml")
    now, later = (table for _, table in plans["default"].steps)
    assert {"cpu-small", "cpu-large", "gpu-small", "gpu-large"} == set(now.presets)
    assert {"vllm", "jupyter"} == set(now.apps)
    assert {"default", "fast"} == set(now.storage)
    assert (now.presets["gpu-large"], later.presets["gpu-large"]) == (40_500_000_000, 42_000_000_000)
    assert now.storage["default"] == 100_000
    assert plans["default"].at(NEW_YEAR - 1) is now
    assert plans["default"].at(NEW_YEAR) is later


@pytest.mark.parametrize(
    ("rate", "nano"),
    [
        ("1", 1_000_000_000),
        ("0", 0),
        ("40.5", 40_500_000_000),
        ("'40.5'", 40_500_000_000),
        ("0.1", 100_000_000),
        ("0.000000001", 1),
        ("2.50", 2_500_000_000),
    ],
)
def test_a_rate_is_the_decimal_that_is_written(rate: str, nano: int):
    assert nano == plan(preset(rate)).steps[0][1].presets["x"]


@pytest.mark.parametrize(
    "rate",
    ["1:30", "010", "0x1F", "0b1", "0o7", "1_000", ".nan", "nan", ".inf", "Infinity", "no", "true", "'1,5'", "'1 '",
     "40.5 credits", "'١'", "1e", "e5", ".", "'" + "1" * 65 + "'", "2027-01-01", "1e2", "'1e2'", "1.5e-3", "+1", ".5",
     "5."],
)  # fmt: skip
def test_what_is_no_plain_decimal_number_is_refused(rate: str):
    assert "is not a plain decimal number; write it like 40.5" in refusals(preset(rate))[0]


@pytest.mark.parametrize(
    ("rate", "said"),
    [
        ("-1", "rate '-1' is negative"),
        ("0.1234567891", "rate '0.1234567891' has more than 9 digits after the point"),
        ("10000000", "is larger than 9007199.254740991 credits"),
        ("", "is nothing; expected a decimal number like 40.5"),
        ("[1]", "is a list; expected a decimal number like 40.5"),
    ],
)
def test_a_rate_that_cannot_be_charged_exactly_is_refused(rate: str, said: str):
    (problem,) = refusals(preset(rate))
    assert problem.startswith("rates.yaml:3: clusters.default.presets.x.credits_per_hour: ")
    assert said in problem


@pytest.mark.parametrize("name", ["no", "123", "1.5", "1e3.0", "null"])
def test_a_name_that_yaml_would_convert_is_the_same_name_once_it_is_quoted(name: str):
    assert {name: NANO} == plan(f'    presets: {{"{name}": {{credits_per_hour: 1}}}}\n').steps[0][1].presets


def test_an_unquoted_number_as_a_name_is_refused():
    assert refusals("    presets:\n      123: {credits_per_hour: 1}\n") == [
        "rates.yaml:4: clusters.default.presets: the key '123' would be read as a number; quote it: \"123\""
    ]


def test_a_comma_in_a_number_is_named():
    assert refusals("    presets:\n      gpu: {credits_per_hour: 13,5}\n") == [
        "rates.yaml:4: clusters.default.presets.gpu: a number has a point, no comma: write 13.5"
    ]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("a\\nb", "holds the control character U+000A"),
        ("", "is empty"),
        (" x", "starts or ends with a space"),
        ("x" * 254, "has 254 characters; a name has at most 253"),
    ],
)
def test_names_that_would_not_survive_labels_and_logs_are_refused(name: str, said: str):
    (problem,) = refusals(f'    presets: {{"{name}": {{credits_per_hour: 1}}}}\n')
    assert said in problem


def test_everything_that_is_wrong_is_said_at_once_with_its_line_and_what_would_be_right():
    text = """\
    presets:
      a: 4
      b: {credit_per_hour: 1}
      c: {credits_per_hour: 1, new: true}
    apps:
    storge: {}
    storage: {s: {credits_per_hour: 1}}
    unpriced: dney
    scheduled:
      - {presets: {a: {credits_per_hour: 1}}}
      - {effective_from: 2027-01-01, apps: {}}
      - {effective_from: 2027-01-01T00:00:00Z}
      - nothing
"""
    path = "clusters.default"
    assert refusals(text) == [
        f"rates.yaml:4: {path}.presets.a: is '4', a number; expected a mapping with credits_per_hour",
        f"rates.yaml:5: {path}.presets.b: unknown key 'credit_per_hour'; did you mean 'credits_per_hour'?",
        f"rates.yaml:5: {path}.presets.b: lacks the key credits_per_hour",
        f"rates.yaml:6: {path}.presets.c: unknown key 'new'; known are credits_per_hour",
        f"rates.yaml:7: {path}.apps: is nothing; expected apps: {{NAME: {{credits_per_hour: 1}}}}",
        f"rates.yaml:8: {path}: unknown key 'storge'; did you mean 'storage'?",
        f"rates.yaml:9: {path}.storage.s: unknown key 'credits_per_hour'; did you mean 'credits_per_gb_hour'?",
        f"rates.yaml:9: {path}.storage.s: lacks the key credits_per_gb_hour",
        f"rates.yaml:10: {path}.unpriced: is 'dney'; did you mean 'deny'?",
        f"rates.yaml:12: {path}.scheduled.0: lacks the key effective_from: a time like 2027-01-01T00:00:00Z",
        (
            f"rates.yaml:13: {path}.scheduled.1.effective_from: '2027-01-01' is not a time with a zone; "
            "write it like 2026-11-22T10:00:00Z"
        ),
        f"rates.yaml:14: {path}.scheduled.2: changes nothing; expected one of presets, apps, storage",
        (
            f"rates.yaml:15: {path}.scheduled.3: is 'nothing', text; expected a mapping with effective_from or presets "
            "or apps or storage"
        ),
    ]


@pytest.mark.parametrize("content", ["", "presets: {}", "clusters:", "clusters: []", "- 1", "text"])
def test_a_file_that_is_no_file_of_rates_is_refused(content: str):
    with pytest.raises(ConfigError):
        parse_rates(content.encode(), "rates.yaml")


def test_scheduled_rates_lie_over_those_before_and_come_in_the_order_of_time():
    steps = plan("""\
    presets: {a: {credits_per_hour: 1}, b: {credits_per_hour: 2}}
    unpriced: free
    scheduled:
      - {effective_from: 2027-06-01T00:00:00Z, presets: {b: {credits_per_hour: 4}}}
      - {effective_from: 2027-01-01T02:00:00+02:00, presets: {a: {credits_per_hour: 3}}}
""").steps
    assert steps == (
        (0, RateTable(presets={"a": NANO, "b": 2 * NANO}, unpriced="free")),
        (NEW_YEAR, RateTable(presets={"a": 3 * NANO, "b": 2 * NANO}, unpriced="free")),
        (parse_time("2027-06-01T00:00:00Z"), RateTable(presets={"a": 3 * NANO, "b": 4 * NANO}, unpriced="free")),
    )


def test_two_entries_for_the_same_instant_are_refused_whatever_their_zones():
    (problem,) = refusals("""\
    scheduled:
      - {effective_from: 2027-01-01T00:00:00Z, apps: {a: {credits_per_hour: 1}}}
      - {effective_from: 2027-01-01T05:45:00+05:45, apps: {a: {credits_per_hour: 2}}}
""")
    assert problem.startswith("rates.yaml:5: ")
    assert "the same instant as the entry in line 4" in problem


SCHEDULED = """\
    presets: {gpu-large: {credits_per_hour: 1}, a100-2: {credits_per_hour: 1}}
    scheduled:
      - effective_from: 2027-01-01T00:00:00Z
        presets: {%s}
"""


def test_a_scheduled_name_that_looks_like_a_slip_is_refused():
    (problem,) = refusals(SCHEDULED % "gpu-lagre: {credits_per_hour: 42}")
    assert problem.startswith("rates.yaml:6: clusters.default.scheduled.0.presets.gpu-lagre: ")
    assert "did you mean 'gpu-large'?" in problem


@pytest.mark.parametrize(
    "cell",
    ["gpu-lagre: {credits_per_hour: 42, new: true}", "tpu: {credits_per_hour: 42}", "a100-4: {credits_per_hour: 42}"],
)
def test_a_scheduled_name_that_is_new_is_taken(cell: str):
    assert 42 * NANO in plan(SCHEDULED % cell).at(NEW_YEAR).presets.values()


def test_checking_a_file_gives_its_problems(tmp_path: Path):
    file = tmp_path / "rates.yaml"
    file.write_text("clusters: {default: {presets: {x: {credits_per_hour: -1}}}}")
    (problem,) = check_rates(file)
    assert (str(file), 1, "-1") == (problem.file, problem.line, problem.value)
    file.write_text("clusters: {default: {presets: {x: {credits_per_hour: 1}}}}")
    assert check_rates(file) == []


NAMES = st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]), min_size=1, max_size=30)
NANOS = st.integers(0, MICRO_MAX)
TABLES = st.fixed_dictionaries({group: st.dictionaries(NAMES, NANOS, max_size=4) for group in ("presets", "apps")})
STORAGE = st.dictionaries(NAMES, NANOS, max_size=3)


def cells(rates: dict[str, int], unit: str, more: str = "") -> str:
    """Rates by name as an admin may write them."""
    rows = [
        f"{json.dumps(name, ensure_ascii=False)}: {{{unit}: {format_rate(nano)}{more}}}" for name, nano in rates.items()
    ]
    return f"{{{', '.join(rows)}}}"


@given(
    st.dictionaries(st.integers(1, NEW_YEAR * 2), TABLES, max_size=4),
    TABLES,
    STORAGE,
    st.sampled_from(["deny", "free"]),
)
def test_any_rates_are_read_as_they_are_written(
    overlays: dict[int, dict[str, dict[str, int]]],
    base: dict[str, dict[str, int]],
    storage: dict[str, int],
    unpriced: str,
):
    unit = "credits_per_hour"
    text = f"    unpriced: {unpriced}\n    storage: {cells(storage, 'credits_per_gb_hour')}\n"
    text += "".join(f"    {group}: {cells(rates, unit)}\n" for group, rates in base.items()) + "    scheduled:\n"
    text += "".join(
        f"      - {{effective_from: {format_time(us)}, "
        + ", ".join(f"{group}: {cells(rates, unit, ', new: true')}" for group, rates in tables.items())
        + "}\n"
        for us, tables in overlays.items()
    )  # fmt: skip
    if not overlays:
        text = text.removesuffix("    scheduled:\n")
    expected = [(0, RateTable(**base, storage=storage, unpriced=unpriced))]
    for us in sorted(overlays):
        base = {group: {**rates, **overlays[us][group]} for group, rates in base.items()}
        expected.append((us, RateTable(**base, storage=storage, unpriced=unpriced)))
    assert tuple(expected) == plan(text).steps


@given(st.decimals(0, 9_000_000, places=9), st.booleans())
def test_every_decimal_keeps_its_exact_value(rate: Decimal, quoted: bool):
    text = f"'{rate:f}'" if quoted else f"{rate:f}"
    assert Fraction(rate) * NANO == plan(preset(text)).steps[0][1].presets["x"]


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9) | st.dates(),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["clusters", "default", "presets", "apps", "storage", "unpriced", "scheduled", "x",
                                 "effective_from", "credits_per_hour", "credits_per_gb_hour", "new"]),
                inner, max_size=4)
        ),
        max_leaves=20,
    )
)  # fmt: skip
def test_no_tree_raises_anything_but_a_config_error(tree: object):
    with suppress(ConfigError):
        parse_rates(yaml.safe_dump(tree).encode(), "rates.yaml")

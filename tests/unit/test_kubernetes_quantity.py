"""Kubernetes quantities and the sizes of presets."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from config.preset_sizes import Size, size_of
from config.quantity import parse_bytes, parse_quantity
from exporter.sources.names import Unbillable
from exporter.sources.preset_sizes import PresetSizes

SUFFIXES = {
    "n": Fraction(1, 10**9), "u": Fraction(1, 10**6), "m": Fraction(1, 1000), "": Fraction(1), "k": Fraction(10**3),
    "M": Fraction(10**6), "G": Fraction(10**9), "T": Fraction(10**12), "P": Fraction(10**15), "E": Fraction(10**18),
    "Ki": Fraction(2**10), "Mi": Fraction(2**20), "Gi": Fraction(2**30), "Ti": Fraction(2**40),
    "Pi": Fraction(2**50), "Ei": Fraction(2**60),
}  # fmt: skip
SIZES = PresetSizes([("small", Size(1000, 10)), ("h100", Size(2000, 20, 1)), ("big", Size(8000, 80, 8))])


@pytest.mark.parametrize(
    ("text", "thousandths"),
    [("1", 1000), ("500m", 500), ("0.1", 100), (".5", 500), ("2.", 2000), ("1e3", 1_000_000), ("1E3", 1_000_000),
     ("12e-1", 1200), ("100n", 1), ("1u", 1), ("500k", 500_000_000), ("+1", 1000), ("0", 0), ("1E", 10**21),
     ("1Ei", 2**60 * 1000)],
)  # fmt: skip
def test_w11_every_form_of_a_quantity_is_read(text: str, thousandths: int):
    assert parse_quantity(text) == thousandths


@pytest.mark.parametrize("text", ["", "m", "1K", "1ki", "1e", "1 Gi", "1e99", "0x10", "1_000", "nan", "1" * 99, "١"])
def test_what_is_no_quantity_is_refused(text: str):
    with pytest.raises(ValueError, match=r"quantity|range|suffix"):
        parse_quantity(text)


@given(st.integers(0, 10**9), st.integers(0, 6), st.sampled_from(sorted(SUFFIXES)))
def test_quantities_are_exact_and_rounded_up(number: int, places: int, suffix: str):
    exact = Fraction(number, 10**places) * SUFFIXES[suffix] * 1000
    text = f"{number // 10**places}.{number % 10**places:0{places}d}{suffix}" if places else f"{number}{suffix}"
    assert parse_quantity(text) == -(-exact.numerator // exact.denominator)


def test_bytes_are_whole():
    assert parse_bytes("1.5Gi") == 3 * 2**29
    assert parse_bytes("100m") == 1


@pytest.mark.parametrize(
    "resource", ["nvidia.com/gpu", "amd.com/gpu", "gpu.intel.com/i915", "nvidia.com/mig-1g.5gb", "google.com/tpu"]
)
def test_w07_accelerators_of_every_make_count(resource: str):
    assert size_of({"cpu": "1", resource: "2"}) == Size(1000, 0, 2)


def test_what_takes_a_gpu_never_lands_on_a_preset_without():
    assert SIZES.choose(None, Size(100, 1, 1)) == ("h100", False)


def test_what_takes_no_gpu_does_not_land_on_one_where_that_can_be_helped():
    assert SIZES.choose(None, Size(500, 1)) == ("small", False)
    assert SIZES.choose(None, Size(1500, 1)) == ("h100", False)


def test_w10_a_cheap_label_on_a_large_workload_is_charged_by_what_fits():
    assert SIZES.choose("small", Size(8000, 80, 8)) == ("big", True)


def test_too_much_of_a_dear_preset_never_lands_on_a_cheaper_one():
    sizes = PresetSizes([("t4", Size(4000, 40, 1)), ("h100", Size(2000, 20, 1)), ("h100x8", Size(16000, 160, 8))])
    assert sizes.choose("h100", Size(3000, 10, 1)) == ("h100x8", True)


def test_w09_what_fits_nowhere_is_charged_by_the_dearest_and_counted():
    assert SIZES.choose("small", Size(10**9, 1)) == ("big", True)
    assert SIZES.choose(None, Size(10**9, 1)) == ("big", True)


def test_without_sizes_the_label_is_trusted_and_needed():
    assert PresetSizes().choose("any", Size(10**9)) == ("any", False)
    with pytest.raises(Unbillable, match="no_preset"):
        PresetSizes().choose(None, Size(1))

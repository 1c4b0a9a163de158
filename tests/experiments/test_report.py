"""Numbers as text, and which lines can be told apart."""

import itertools

import pytest

from experiments.common import report
from experiments.depth import cells


@pytest.mark.parametrize(
    ("values", "digits", "expected"),
    [
        ([0.5], 2, "0.50"),
        ([1.0, 3.0], 1, "2.0 ± 1.4"),
        ([999_999.4], 1, "999999.4"),
        ([8.0288e24], 2, "8.03e+24"),
        ([-2e6, 2e6], 1, "0.0e+00 ± 2.8e+06"),
    ],
)
def test_mean_and_deviation(values, digits, expected):
    assert report.mean_std(values, digits=digits) == expected


@pytest.mark.parametrize("styles", [report.STYLES, {**report.STYLES, **cells.STYLES}])
def test_no_two_methods_are_drawn_alike(styles):
    drawn = [
        (style["color"], style.get("linestyle", "-"), style.get("marker"))
        for style in styles.values()
    ]
    assert len(set(drawn)) == len(drawn)


def test_lines_of_one_colour_differ_in_more_than_markers():
    """Every tenth epoch has a marker: between them a long curve is a line alone."""
    for (a, one), (b, other) in itertools.combinations(report.STYLES.items(), 2):
        if {a, b} in ({"IL-norm", "IL-Adam"},):  # bars, which are labelled
            continue
        seen = [(s["color"], s.get("linestyle", "-")) for s in (one, other)]
        assert seen[0] != seen[1], (a, b)

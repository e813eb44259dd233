"""Numbers as text."""

from histojax.evaluation import formatting


def test_numbers_and_intervals() -> None:
    assert formatting.number(0.12345) == "0.123"
    assert formatting.number(None, undefined="–") == "–"
    assert formatting.with_interval({"value": 0.5, "low": 0.25, "high": 0.75}, 2) == "0.50 [0.25, 0.75]"
    assert formatting.with_interval({"value": 0.5, "low": None, "high": 0.75}) == "0.500"


def test_a_small_negative_number_is_no_negative_zero() -> None:
    assert formatting.with_interval({"value": -0.0001, "low": -0.0002, "high": 0.1}) == "0.000 [0.000, 0.100]"

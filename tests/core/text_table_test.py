"""Columns of text."""

import pytest

from histojax.core.text_table import text_table


def test_columns_line_up_and_no_line_ends_in_spaces() -> None:
    rows = [["model", "n", ""], ["resnet50", "12", "note"], ["vit", "3", ""]]
    assert text_table(rows, right=[1]) == ["model      n", "resnet50  12  note", "vit        3"]


def test_a_row_of_another_length_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"shorter|longer"):
        text_table([["a", "b"], ["c"]])


def test_no_rows_give_no_lines() -> None:
    assert text_table([]) == []

"""The hot spot: a planted field, and the field that loops over all fields find."""

import itertools

import pytest

from histojax.slides.tsr import tsr
from tests.helpers.tsr_grids import GEOMETRY, make_spec, make_table, random_table, value


def spot_of(table, side, inside=None, **changes):
    """The hot spot of a field of side × side cells."""
    return tsr.measure(table, GEOMETRY, make_spec(hot_spot_um=100.0 * side, **changes), inside)["areas"]["hot spot"]


# Field of 4 × 4 cells (400 µm), border strips one cell deep. At (2, 2): 5 T, 11 S; nothing around it is as rich and
# has tumor on all four sides; the S to the right has none.
PLANTED = (
    "TTTTTTTTSSSSS",
    "TTTTTTTTSSSSS",
    "TTTSSTTTSSSSS",
    "TTTSSSTTSSSSS",
    "TTSSSSTTSSSSS",
    "TTSSTTTTSSSSS",
    "TTTTTTTTSSSSS",
)


def test_the_hot_spot_is_the_planted_field():
    area = spot_of(make_table(*PLANTED, row=3, column=5), 4)
    assert area["status"] == "evaluated"
    assert area["tiles"] == 16
    # Cells are centred in tiles twice as wide: half a cell from the tile's corner.
    assert area["box"] == {"minx": (5 + 2) * 200 + 100, "miny": (3 + 2) * 200 + 100, "width": 800, "height": 800}
    assert value(area) == pytest.approx(100 * 11 / 16)
    assert area["stroma_class"]["name"] == "stroma-high"
    assert area["stroma_class"]["same_class_share"] is None
    assert area["stroma_percentage"]["low"] is None
    assert "chosen" in area["stroma_percentage"]["reason"]
    assert area["notes"] == [tsr.HOT_SPOT_NOTE]


def test_the_hot_spot_is_searched_in_the_region():
    table = make_table(*PLANTED)
    inside = (table["row"] >= 3).to_numpy()
    area = spot_of(table, 4, inside)
    assert area["searched"] == "region"
    assert area["box"]["miny"] == 3 * 200 + 100


def brute_force(table, side):
    """The best field by loops: (share, -tissue, row, column), or None."""
    carried = {
        (r, c): (t >= 0.5, s >= 0.5) for r, c, t, s in table[["row", "column", "prob_tumor", "prob_stroma"]].values
    }
    depth = max(1, side // 4)
    best = None
    rows, columns = table["row"], table["column"]
    for r in range(rows.min(), rows.max() - side + 2):
        for c in range(columns.min(), columns.max() - side + 2):
            cells = {
                (i, j): carried[r + i, c + j]
                for i, j in itertools.product(range(side), repeat=2)
                if (r + i, c + j) in carried
            }
            tumor = [at for at, (t, _) in cells.items() if t]
            sides = (
                any(i < depth for i, _ in tumor), any(i >= side - depth for i, _ in tumor),
                any(j < depth for _, j in tumor), any(j >= side - depth for _, j in tumor),
            )  # fmt: skip
            if len(cells) < side * side / 2 or not all(sides):
                continue
            stroma = sum(s for _, s in cells.values())
            key = (-round(stroma / (len(tumor) + stroma), 9), -len(cells), r, c)
            best = key if best is None else min(best, key)
    return best


@pytest.mark.parametrize(
    ("side", "kinds"),
    [(3, "TSSB... "), (4, "TSSB... "), (8, "TSSB... "), (9, "T" + 24 * "S"), (11, "T" + 24 * "S")],  # few T: sides bind
)
@pytest.mark.parametrize("seed", range(4))
def test_the_hot_spot_equals_loops_over_all_fields(side, kinds, seed):
    table = random_table(16, 19, seed, kinds)
    area = spot_of(table, side, policy="both")
    best = brute_force(table, side)
    assert (area["status"] == "evaluated") == (best is not None)
    if best is None:
        return
    share, _, row, column = best
    assert (area["box"]["miny"], area["box"]["minx"]) == (row * 200 + 100, column * 200 + 100)
    assert value(area) == pytest.approx(-100 * share)


def test_of_equally_rich_fields_the_first_is_taken_in_spite_of_rounding():
    # A pattern that repeats every four tiles: each field of four is as rich as those four tiles on.
    pattern = ("TBST", "BSSB", "SBBT", "TTBS")
    table = make_table(*(line * 8 for line in pattern * 8))
    first = spot_of(table[(table["row"] < 7) & (table["column"] < 7)], 4)
    area = spot_of(table, 4)
    assert (area["box"], value(area)) == (first["box"], value(first))


def test_tumor_of_no_area_is_no_side():
    # Tumor only in the fourth of four columns; a threshold of 0 has every tile carry it.
    table = make_table("...T", "...T", "...T")
    table[["prob_tumor", "prob_stroma"]] *= (table[["prob_tumor"]] > 0.5).to_numpy()
    area = spot_of(table, 3, measure="probability", thresholds={"tumor": 0.0, "stroma": 0.5, "necrosis": 0.5})
    assert area["status"] == "not evaluable"


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        (["TTTT"] * 3, "the tissue spans only 3 × 4 tiles, the field 4 × 4"),
        (["SSSSS", "TTTTT", "TTTTT", "SSSSS"], "no field of 4 × 4 tiles has tumor tiles at its north, east"),
        (["TTTT", "    ", "    ", "TT T"], "no field of 4 × 4 tiles has tumor tiles at its north, east"),  # 7 of 16
    ],
)
def test_no_hot_spot_says_why(lines, reason):
    area = spot_of(make_table(*lines), 4)
    assert area["status"] == "not evaluable"
    assert area["reason"].startswith(reason)
    assert area["box"] is None
    assert area["tiles"] == 0


def test_a_field_needs_four_sides():
    area = spot_of(random_table(), 2)
    assert area["reason"].startswith("the field is 2 tile(s) wide")


def test_half_a_field_of_tissue_is_enough():
    area = spot_of(make_table("TTTT", "    ", "    ", "TTTS"), 4)
    assert area["status"] == "evaluated"

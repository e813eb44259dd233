"""BreakHis file names: the fields of a valid name, and the error for an invalid one."""

import pathlib

import pytest

from data_pipelines.breakhis import filenames


@pytest.mark.parametrize(
    ("file_name", "expected"),
    [
        (
            "SOB_B_A-14-22549AB-40-001.png",
            ("SOB_B_A-14-22549AB-40-001", "benign", "A", "SOB_B_A_14-22549AB", "14-22549", "40X"),
        ),
        (
            "SOB_M_DC-14-13412-100-017.png",
            ("SOB_M_DC-14-13412-100-017", "malignant", "DC", "SOB_M_DC_14-13412", "14-13412", "100X"),
        ),
        (  # the only slide of another year
            "SOB_M_PC-15-190EF-400-020.png",
            ("SOB_M_PC-15-190EF-400-020", "malignant", "PC", "SOB_M_PC_15-190EF", "15-190", "400X"),
        ),
        (
            "SOB_B_PT-14-21998AB-200-009.png",
            ("SOB_B_PT-14-21998AB-200-009", "benign", "PT", "SOB_B_PT_14-21998AB", "14-21998", "200X"),
        ),
    ],
)
def test_name_gives_all_fields(file_name: str, expected: tuple[str, ...]) -> None:
    assert filenames.parse(file_name) == filenames.ImageName(*expected)


@pytest.mark.parametrize(
    "spelling",
    [
        "benign___SOB_B_TA-14-3411F-40-002.png",
        "benign_SOB_B_TA-14-3411F-40-002.png",
        "sob_b_ta-14-3411f-40-002.PNG",
        "BENIGN_sob_B_Ta-14-3411F-40-002.Png",
    ],
)
def test_spellings_of_mirrors_are_the_same_image(spelling: str) -> None:
    assert filenames.parse(spelling) == filenames.parse("SOB_B_TA-14-3411F-40-002.png")


def test_malignant_prefix_is_accepted() -> None:
    assert filenames.parse("malignant_SOB_M_MC-14-18842D-40-002.png").image_id == "SOB_M_MC-14-18842D-40-002"


def test_blocks_of_an_accession_number_are_patients_of_one_case() -> None:
    names = [filenames.parse(f"SOB_B_F-14-{slide}-40-001.png") for slide in ("23060AB", "23060CD", "23060")]
    assert len({name.patient_id for name in names}) == 3
    assert {name.case_id for name in names} == {"14-23060"}


@pytest.mark.parametrize(
    ("file_name", "reason"),
    [
        ("SOB_B_XY-14-22549AB-40-001.png", r"unknown subtype 'XY' \(known: A, F, PT, TA, DC, LC, MC, PC\)"),
        ("SOB_X_A-14-22549AB-40-001.png", r"unknown class 'X' \(known: B, M\)"),
        ("benign___SOB_X_A-14-22549AB-40-001.png", "unknown class 'X'"),
        ("SOB_M_A-14-22549AB-40-001.png", r"class M contradicts subtype A \(adenosis\)"),
        ("SOB_B_DC-14-22549AB-40-001.png", r"class B contradicts subtype DC \(ductal_carcinoma\)"),
        ("SOB_B_A-14-22549AB-20-001.png", "unknown magnification '20'"),
        ("SOB_B_A-14-22549AB-40-01.png", "not named like SOB_"),
        ("SOB_B_A-14-22549AB-40-001.jpg", "not named like SOB_"),
        ("SOB_B_A-14-22549AB-40-001.png.png", "not named like SOB_"),
        ("copy of SOB_B_A-14-22549AB-40-001.png", "not named like SOB_"),
        ("SOB_B_A-2014-22549AB-40-001.png", "not named like SOB_"),
        ("SOB_B_A_14-22549AB-40-001.png", "not named like SOB_"),
        ("tumour.png", "not named like SOB_"),
        ("", "not named like SOB_"),
    ],
)
def test_invalid_name_is_refused_with_the_wrong_field(file_name: str, reason: str) -> None:
    with pytest.raises(filenames.BadNameError, match=reason):
        filenames.parse(file_name)


def test_published_totals() -> None:
    by_magnification = [sum(column) for column in zip(*filenames.PUBLISHED_COUNTS.values(), strict=True)]
    assert by_magnification == [1995, 2081, 2013, 1820]
    assert sum(by_magnification) == 7909


def test_published_totals_by_class() -> None:
    totals = {"benign": 0, "malignant": 0}
    for subtype, counts in filenames.PUBLISHED_COUNTS.items():
        cls = "B" if subtype in ("A", "F", "PT", "TA") else "M"
        totals[filenames.parse(f"SOB_{cls}_{subtype}-14-1-40-001.png").label] += sum(counts)
    assert totals == {"benign": 2480, "malignant": 5429}


def test_subtype_tables_agree() -> None:
    assert tuple(filenames.PUBLISHED_COUNTS) == filenames.SUBTYPES == tuple(filenames.SUBTYPE_NAMES)


def test_known_duplicates_use_parsed_patient_names() -> None:
    ductal = filenames.parse("SOB_M_DC-14-13412-100-001.png").patient_id
    lobular = filenames.parse("SOB_M_LC-14-13412-100-001.png").patient_id
    assert {ductal: lobular} == filenames.DUPLICATE_SLIDES


def test_real_names_agree_with_their_folders(breakhis_part: pathlib.Path) -> None:
    paths = sorted(breakhis_part.rglob("*.png"))
    assert paths
    for path in paths:
        name = filenames.parse(path.name)
        assert f"{name.image_id}.png" == path.name
        # .../breast/benign/SOB/adenosis/SOB_B_A_14-22549AB/100X/SOB_B_A-14-22549AB-100-001.png
        label, _, subtype, patient, magnification = path.parts[-6:-1]
        assert (name.label, filenames.SUBTYPE_NAMES[name.subtype]) == (label, subtype)
        assert (name.patient_id, name.magnification) == (patient, magnification)

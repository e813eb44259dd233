"""The grammar of BreakHis file names, and the counts published in its paper.

The name holds everything that is known about an image, so folders are ignored: mirrors lose them.
"""

import dataclasses
import re

MAGNIFICATIONS = ("40X", "100X", "200X", "400X")
CLASSES = ("benign", "malignant")
SUBTYPES = ("A", "F", "PT", "TA", "DC", "LC", "MC", "PC")
SUBTYPE_NAMES = {
    "A": "adenosis",
    "F": "fibroadenoma",
    "PT": "phyllodes_tumor",
    "TA": "tubular_adenoma",
    "DC": "ductal_carcinoma",
    "LC": "lobular_carcinoma",
    "MC": "mucinous_carcinoma",
    "PC": "papillary_carcinoma",
}
_BENIGN = frozenset(("A", "F", "PT", "TA"))

# Spanhol et al. 2016: images of each subtype at 40X, 100X, 200X, 400X. The totals are 1995, 2081, 2013
# and 1820; the "9,109 images" on the dataset's page is a typo.
PUBLISHED_COUNTS: dict[str, tuple[int, int, int, int]] = {
    "A": (114, 113, 111, 106),
    "F": (253, 260, 264, 237),
    "PT": (109, 121, 108, 115),
    "TA": (149, 150, 140, 130),
    "DC": (864, 903, 896, 788),
    "LC": (156, 170, 163, 137),
    "MC": (205, 222, 196, 169),
    "PC": (145, 142, 135, 138),
}

# Slide 13412 is filed under ductal and under lobular carcinoma, the same pictures under two names.
# Publications that remove one copy remove the ductal one.
DUPLICATE_SLIDES = {"SOB_M_DC_14-13412": "SOB_M_LC_14-13412"}

_NAME = re.compile(
    r"(?:(?:benign|malignant)_+)?"  # a prefix that some mirrors add
    r"SOB_(?P<cls>[BM])_(?P<subtype>A|F|PT|TA|DC|LC|MC|PC)"
    r"-(?P<year>\d\d)-(?P<accession>\d+)(?P<suffix>[A-Z]*)"
    r"-(?P<magnification>40|100|200|400)-(?P<sequence>\d{3})\.png",
    re.IGNORECASE,
)
_SHAPE = "SOB_<B|M>_<A|F|PT|TA|DC|LC|MC|PC>-<YY>-<slide>-<40|100|200|400>-<NNN>.png"


class BadNameError(ValueError):
    """A file name does not follow the BreakHis grammar; the message says where."""


@dataclasses.dataclass(frozen=True)
class ImageName:
    """The content of an image's name.

    Attributes:
      image_id: the name without a mirror's prefix and `.png`.
      label: `benign` or `malignant`.
      subtype: one of `SUBTYPES`.
      patient_id: the name of the slide folder, `SOB_B_A_14-22549AB`, which the literature calls a patient.
      case_id: `14-22549`, the accession number without its letters, which probably denote blocks.
      magnification: one of `MAGNIFICATIONS`.
    """

    image_id: str
    label: str
    subtype: str
    patient_id: str
    case_id: str
    magnification: str


def parse(file_name: str) -> ImageName:
    """Parse a file name without folders.

    Raises:
      BadNameError: the name does not follow the grammar, or its class contradicts its subtype.
    """
    match = _NAME.fullmatch(file_name)
    if match is None:
        raise BadNameError(_describe_mismatch(file_name))
    cls, subtype = match["cls"].upper(), match["subtype"].upper()
    if (cls == "B") != (subtype in _BENIGN):
        raise BadNameError(f"class {cls} contradicts subtype {subtype} ({SUBTYPE_NAMES[subtype]})")
    slide = f"{match['year']}-{match['accession']}{match['suffix'].upper()}"
    return ImageName(
        image_id=f"SOB_{cls}_{subtype}-{slide}-{match['magnification']}-{match['sequence']}",
        label=CLASSES[cls == "M"],
        subtype=subtype,
        patient_id=f"SOB_{cls}_{subtype}_{slide}",
        case_id=f"{match['year']}-{match['accession']}",
        magnification=f"{match['magnification']}X",
    )


def _describe_mismatch(file_name: str) -> str:
    """Say which field of a misnamed file is wrong, if that can be determined."""
    fields = re.match(r"(?:(?:benign|malignant)_+)?SOB_([^_-]+)_([^_-]+)-", file_name, re.IGNORECASE)
    if fields and fields[1].upper() not in ("B", "M"):
        return f"unknown class '{fields[1]}' (known: B, M)"
    if fields and fields[2].upper() not in SUBTYPES:
        return f"unknown subtype '{fields[2]}' (known: {', '.join(SUBTYPES)})"
    magnification = re.search(r"-(\d+)-\d{3}\.png$", file_name, re.IGNORECASE)
    if fields and magnification and f"{magnification[1]}X" not in MAGNIFICATIONS:
        return f"unknown magnification '{magnification[1]}' (known: 40, 100, 200, 400)"
    return f"not named like {_SHAPE}"

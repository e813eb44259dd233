"""Published sets that `data.images.recipe` names: their layout, their images per class, and what to know of them.

The package has none of their images and downloads nothing. No recipe was run on the real set: the facts are those of
publishers' pages and of public code, and `check` compares what a root holds with them.
"""

import dataclasses
import pathlib
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from data_pipelines.errors import DataError
from data_pipelines.image_folder import osteosarcoma
from histojax.core.printable import listed, printable
from histojax.core.suggestions import did_you_mean

Counts = Mapping[str, Mapping[str, int]]
_LISTED = 6


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A published set.

    Attributes:
      title: what its images show.
      licence: as published.
      get: where its publisher has it.
      layout: the root and what it holds.
      split: what is published of a split, and what follows.
      counts: part -> class -> images. Parts are the values of `by`; a single part is "".
      fields: of `config.data.images`, which read the layout.
      auto: how `data.split.protocol=auto` divides the images.
      by: `given_split` or `magnification`; empty: one part.
      positive: of two classes, the positive one.
      caveat: what results note of every image.
      ran: whether it was run on the real set.
    """

    title: str
    licence: str
    get: str
    layout: str
    split: str
    counts: Counts
    fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    auto: str = "single images: optimistic"
    by: str = ""
    positive: str = ""
    caveat: str = ""
    ran: bool = False

    @property
    def classes(self) -> list[str]:
        """The names of the classes."""
        return sorted({name for part in self.counts.values() for name in part})

    @property
    def images(self) -> int:
        """The number of images in all parts."""
        return sum(sum(part.values()) for part in self.counts.values())


_BY_IMAGE = "auto divides single images, which is optimistic"
RECIPES = {
    "bach": Recipe(
        title="BACH (ICIAR 2018): breast, 2048×1536 pixels, 0.42 µm per pixel",
        licence="CC BY-NC-ND 4.0",
        get="https://zenodo.org/records/3632035, ICIAR2018_BACH_Challenge.zip",
        layout="the folder Photos, with Normal/n001.tif, Benign/b001.tif, InSitu/is001.tif, Invasive/iv001.tif …",
        split="The labels of the 100 test images are not public. The challenge's page has patients for a part of the "
        f"400 images; without them in a table, {_BY_IMAGE}.",
        counts={"": dict.fromkeys(("Benign", "InSitu", "Invasive", "Normal"), 100)},
    ),
    "nct_crc_he": Recipe(
        title="NCT-CRC-HE-100K and CRC-VAL-HE-7K: colorectal tissue, 224×224 pixels, 0.5 µm per pixel",
        licence="CC BY 4.0",
        get="https://zenodo.org/records/1214456, NCT-CRC-HE-100K.zip and CRC-VAL-HE-7K.zip",
        layout="a folder with NCT-CRC-HE-100K/ADI/….tif … and CRC-VAL-HE-7K/ADI/….tif … (not the NONORM images)",
        split="Published: NCT-CRC-HE-100K trains, CRC-VAL-HE-7K (50 other patients) tests; auto uses it. Validation is "
        "taken out of training by image, because the patients of its tiles are not published.",
        counts={
            "train": {
                "ADI": 10407, "BACK": 10566, "DEB": 11512, "LYM": 11557, "MUC": 8896, "MUS": 13536, "NORM": 8763,
                "STR": 10446, "TUM": 14317,
            },
            "test": {
                "ADI": 1338, "BACK": 847, "DEB": 339, "LYM": 634, "MUC": 1035, "MUS": 592, "NORM": 741, "STR": 421,
                "TUM": 1233,
            },
        },
        fields={"group_pattern": r"(?:(?P<train>NCT-CRC-HE-100K)|(?P<test>CRC-VAL-HE-7K))/(?P<label>[A-Z]+)/[^/]+$"},
        auto="as published",
        by="given_split",
    ),
    "pcam": Recipe(
        title="PatchCamelyon without its duplicates: lymph nodes, 96×96 pixels",
        licence="CC0",
        get="https://www.kaggle.com/c/histopathologic-cancer-detection/data (an account is needed)",
        layout="a folder with train_labels.csv (id, label) and train/ID.tif. The HDF5 files camelyonpatch_level_2_….h5 "
        "of the original set are not read: use these TIFF files, or a source of your own that reads HDF5, as in "
        "docs/data/folders.md",
        split=f"Kaggle's test labels are not public, and neither patients nor slides are in the table: {_BY_IMAGE}. "
        "The split of the original set needs its HDF5 files.",
        counts={"": {"0": 130908, "1": 89117}},
        fields={"table": "train_labels.csv", "path_template": "train/{id}.tif"},
        positive="1",
    ),
    "lc25000": Recipe(
        title="LC25000: lung and colon, 768×768 pixels",
        licence="not confirmed: its authors call it free for any use, copies state different licences",
        get="https://github.com/tampapath/lung_colon_image_set, LC25000.zip",
        layout="lung_colon_image_set, with lung_image_sets/lung_aca/lungaca1.jpeg … and colon_image_sets/colon_n/…",
        split="None is known to us, and any split by image leaks. The table lc25000_image_groups.csv of "
        "https://github.com/GeorgeBatch/LC25000-clean names the images that share an original (1,246 groups). Put it "
        "into the root; `data.images.table=lc25000_image_groups.csv`, `data.images.columns.case_id=group_id` and "
        "`data.images.path_template={tissue}_image_sets/{label}/{filename}` keep them on one side.",
        counts={"": dict.fromkeys(("colon_aca", "colon_n", "lung_aca", "lung_n", "lung_scc"), 5000)},
        fields={"group_pattern": "(?P<label>(?:lung|colon)_[a-z]+)/[^/]+$"},
        caveat="image made from one of only 1,250 originals (turned by up to 25°, mirrored): a split by image leaks, "
        "and the search for near copies cannot show all of it",
    ),
    "mhist": Recipe(
        title="MHIST: colorectal polyps, hyperplastic (HP) or sessile serrated adenoma (SSA), 224×224 pixels",
        licence="Dataset Research Use Agreement of Dartmouth",
        get="https://bmirds.github.io/MHIST (on request)",
        layout="a folder with annotations.csv (Image Name, Majority Vote Label, …, Partition) and images/MHIST_….png",
        split="Published: the column Partition, 2,175 train and 977 test images; auto uses it. Patients are not in the "
        "table.",
        counts={"train": {"HP": 1545, "SSA": 630}, "test": {"HP": 617, "SSA": 360}},
        fields={
            "table": "annotations.csv",
            "path_template": "images/{Image Name}",
            "columns": {"label": "Majority Vote Label", "split": "Partition"},
        },
        auto="as published",
        by="given_split",
        positive="SSA",
    ),
    "oral_oscc": Recipe(
        title="Oral epithelium, normal or squamous cell carcinoma (OSCC), at 100× and 400×, 2048×1536 pixels",
        licence="CC BY 4.0 by a list of others; see the publisher's page",
        get="https://data.mendeley.com/datasets/ftmp4cvtmb",
        layout="a folder with First Set/… and Second Set/…, files named Normal_100x_1.jpg, OSCC_400x_1.jpg …",
        split=f"None is known to us, nor which image is of which of the 230 patients: {_BY_IMAGE}. For one "
        "magnification, give its folder and `data.images.part=true`.",
        counts={"100x": {"Normal": 89, "OSCC": 439}, "400x": {"Normal": 201, "OSCC": 495}},
        fields={"group_pattern": r"(?P<label>Normal|OSCC)_(?P<magnification>\d+x)_[^/]*$"},
        by="magnification",
        positive="OSCC",
    ),
    "osteosarcoma": Recipe(
        title="Osteosarcoma-Tumor-Assessment (TCIA): tiles of 1024×1024 pixels at 10×",
        licence="CC BY 3.0 by a copy; see the publisher's page",
        get="https://doi.org/10.7937/tcia.2019.bvhjhdas",
        layout=f"a folder with {osteosarcoma.TABLE} and Training-Set-1/set1/….jpg … (not an archive)",
        split="None is known to us. auto divides by the patients in the names: Case-3, Case-4, Case-48 and P9. With "
        "four, use `data.split.kfolds=4`; a fold may lack a class.",
        # The table calls 53 of the 345 viable tiles "viable: non-viable".
        counts={"": {"Non-Tumor": 536, "Viable": 345, "Non-Viable-Tumor": 263}},
        fields={"source": osteosarcoma.SOURCE.name},
        auto="patients (4)",
    ),
}  # fmt: skip


def find(name: str) -> Recipe:
    """Return a recipe.

    Raises:
      DataError: there is none of this name.
    """
    if name not in RECIPES:
        raise DataError(
            f"data.images.recipe='{name}': no such recipe{did_you_mean(name, RECIPES)} ({', '.join(RECIPES)})"
        )
    return RECIPES[name]


def check(name: str, root: pathlib.Path, items: Iterable[Any], part: bool) -> None:
    """Compare the images of a root with the published numbers of each class.

    Args:
      name: of the recipe.
      root: of the images, for the message.
      items: the images, with `label`, `given_split` and `magnification`.
      part: whether fewer images than published are fine.

    Raises:
      DataError: the numbers differ.
    """
    recipe = find(name)
    found = Counter((getattr(item, recipe.by) if recipe.by else "", item.label) for item in items)
    expected = Counter({(key, label): n for key, classes in recipe.counts.items() for label, n in classes.items()})
    if {key for key, _ in found} == {""}:  # without the parts, or with one side alone, which is no split
        totals: Counter[tuple[str, str]] = Counter()
        for (_, label), n in expected.items():
            totals["", label] += n
        expected = totals
    wrong = [
        f"{' '.join(filter(None, key))} {found[key]} (published {expected[key]})"
        for key in sorted(found | expected)
        if found[key] != expected[key] and not (part and found[key] < expected[key])
    ]
    if wrong:
        raise DataError(
            f"{printable(root)}: not the images of {name} as published: {printable(listed(wrong, _LISTED))}. "
            f"Complete or unpack it again ({recipe.get}); for a part of it, set --config.data.images.part=true; for "
            "other images, set --config.data.images.recipe= (empty)"
        )

"""The five published folds of BreakHis: the files `dsfold1.txt` … `dsfold5.txt` (Spanhol et al. 2016)."""

import pathlib
from collections.abc import Mapping

from data_pipelines.breakhis import filenames
from data_pipelines.errors import DataError
from histojax.core.files import atomic_write


def read_folds(folder: pathlib.Path, fold: int) -> dict[str, str]:
    """Read `dsfold<fold>.txt`.

    The file has no header and one line per image, with name, magnification, fold and side:
    `SOB_M_DC-14-13412-100-001.png|100|1|train`.

    Returns:
      image_id -> `train` or `test`.

    Raises:
      DataError: the file does not exist, or a line has another form.
    """
    path = folder / f"dsfold{fold}.txt"
    if not path.is_file():
        raise DataError(
            f"{path}: no such file; download dsfold1.txt … dsfold5.txt, which are published "
            "on the dataset's page, beside the archive"
        )
    sides: dict[str, str] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").split("\n"), 1):
        if not line.strip():
            continue
        fields = [field.strip() for field in line.split("|")]
        try:
            if len(fields) != 4 or fields[2] != str(fold) or fields[3] not in ("train", "test"):
                raise ValueError(f"expected NAME.png|MAGNIFICATION|{fold}|train or test")
            name = filenames.parse(fields[0])
            if name.magnification != f"{fields[1]}X":
                raise ValueError(f"magnification {fields[1]} contradicts the name")
            if sides.setdefault(name.image_id, fields[3]) != fields[3]:
                raise ValueError("an earlier line puts this image on the other side")
        except ValueError as error:
            raise DataError(f"{path}, line {number}: '{line}': {error}") from error
    if not sides:
        raise DataError(f"{path}: empty")
    return sides


def write_fold(folder: pathlib.Path, fold: int, sides: Mapping[str, str]) -> pathlib.Path:
    """Write `dsfold<fold>.txt` in the format of `read_folds`; validation images count as training images.

    Args:
      folder: created if it does not exist.
      fold: number of the fold, from 1.
      sides: BreakHis image_id -> train, val or test; images without a side are left out.

    Returns:
      The path of the file.

    Raises:
      DataError: an image has no BreakHis name.
    """
    lines = []
    for image_id, side in sorted(sides.items()):
        try:
            name = filenames.parse(f"{image_id}.png")
        except filenames.BadNameError as error:
            raise DataError(f"dsfold{fold}.txt can only hold BreakHis images: '{image_id}': {error}") from error
        if side:
            written = "test" if side == "test" else "train"
            lines.append(f"{name.image_id}.png|{name.magnification.removesuffix('X')}|{fold}|{written}\n")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"dsfold{fold}.txt"
    with atomic_write(path) as temporary:
        temporary.write_text("".join(lines), encoding="utf-8")
    return path

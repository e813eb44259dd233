"""Estimate the stains of real sources, towards which `histojax robustness` shifts images.

    python benchmarks/stain_sources.py --data ../shared/data

For each source, Macenko's method finds hematoxylin and eosin in every image with enough tissue; the file holds the
median of each number, and how many images it rests on. It holds no pixels. Slides are cut into tiles of 512 pixels.
"""

import argparse
import json
import pathlib
from collections.abc import Iterator

import numpy as np
import tifffile

from benchmarks.record_results import dump
from data_pipelines import stain
from data_pipelines.images import decode_rgb, read_file
from histojax.core.files import atomic_write
from histojax.core.walk import find_files
from histojax.studies.robustness.shifts import SOURCES_FILE

_TILE = 512  # pixels
# Name -> title, what lies where below the folder of data, license.
SOURCES = {
    "breakhis": ("BreakHis", "BreaKHis_200X_224", "breast, at 200X, resized to 224 × 224", "CC BY 4.0"),
    "crc": ("CRC-VAL-HE-7K", "crc_tiles", "colorectal, 0.5 µm/px, seven tissue classes", "CC BY 4.0"),
    "wsss4luad": ("WSSS4LUAD", "wsss4luad_part/img", "lung adenocarcinoma, validation set", "research use"),
    "cmu1": ("OpenSlide's CMU-1", "slides/cmu-1-small-region.svs", "one region of one slide, Aperio", "CC0"),
    "cptac": ("a CPTAC slide", "slides/C3L-00601-26_stitched_pyramid.tif", "one section, C3L-00601-26", "CC BY 3.0"),
}


def main() -> None:
    """Write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=pathlib.Path, required=True, help="folder with the sources")
    args = parser.parse_args()
    sources = {}
    for name, (title, place, content, license_) in SOURCES.items():
        normalizer, used, left_out = stain.fit(stain.MACENKO, images(args.data / place))
        numbers = np.round(normalizer.target, 4).tolist()
        sources[name] = {
            "title": title,
            "content": content,
            "license": license_,
            "images": used,
            "left_out": left_out,
            "vectors": [numbers[:3], numbers[3:6]],
            "strength": numbers[6:],
        }
        print(name, json.dumps(sources[name]))
    about = {
        "command": "python benchmarks/stain_sources.py --data DATA",
        "method": "Macenko et al. 2009, medians over images; hematoxylin first; natural optical densities of R, G, B",
    }
    with atomic_write(SOURCES_FILE) as temporary:
        temporary.write_text(dump({"about": about, "sources": sources}), encoding="utf-8")


def images(place: pathlib.Path) -> Iterator[np.ndarray]:
    """Yield the images of a folder, or the tiles of a slide, `u8 [h, w, 3]`."""
    if place.is_dir():
        for path in map(pathlib.Path, sorted(find_files(str(place), (".png", ".jpg")).paths)):
            yield decode_rgb(read_file(path))
        return
    level = tifffile.imread(place)
    for top in range(0, level.shape[0] - _TILE + 1, _TILE):
        for left in range(0, level.shape[1] - _TILE + 1, _TILE):
            yield np.ascontiguousarray(level[top : top + _TILE, left : left + _TILE, :3])


if __name__ == "__main__":
    main()

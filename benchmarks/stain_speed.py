"""Measure what stain normalisation costs: batches of training with and without it, in processor time.

    python benchmarks/stain_speed.py IMAGES --threads 2 --json stain_speed.json

IMAGES is a folder of image files; they are read and resized before the clock starts. Processor time per image does not
depend on what else the machine does, and images per second do.
"""

import argparse
import concurrent.futures
import functools
import json
import pathlib
import time

import cv2
import numpy as np

from data_pipelines import stain
from data_pipelines.pixels import decode, resize
from histojax.core import machine
from histojax.data.transforms import AugmentSpec, augment


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=pathlib.Path)
    parser.add_argument("--image_size", type=int, default=224)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=pathlib.Path)
    args = parser.parse_args()
    cv2.setNumThreads(0)
    files = sorted(path for path in args.images.rglob("*") if path.suffix.lower() in (".png", ".jpg"))
    pixels = [resize(decode(path.read_bytes()), args.image_size) for path in files]
    normalizers = {method: stain.fit(method, pixels[:256])[0] for method in stain.METHODS}
    plain, off = AugmentSpec(), AugmentSpec(flips=False, quarter_turns=False)
    works = {
        "macenko": (off, normalizers["macenko"]),
        "reinhard": (off, normalizers["reinhard"]),
        "macenko_jitter": (AugmentSpec(flips=False, quarter_turns=False, macenko_jitter=0.2), None),
        "stain_jitter": (AugmentSpec(flips=False, quarter_turns=False, stain_jitter=0.2), None),
        "flips and turns": (plain, None),
    }
    rows = {}
    for name, (spec, normalizer) in works.items():
        rng = np.random.default_rng(0)
        work = functools.partial(augment, size=args.image_size, spec=spec, rng=rng, stain=normalizer)
        rounds = []
        with concurrent.futures.ThreadPoolExecutor(args.threads) as pool:
            for _ in range(args.rounds):
                wall, busy = time.perf_counter(), time.process_time()
                list(pool.map(work, pixels))
                rounds.append((time.perf_counter() - wall, time.process_time() - busy))
        wall, busy = np.median(np.array(rounds), axis=0) / len(pixels)
        rows[name] = {"work": name, "images_per_second": 1 / wall, "cpu_ms": 1e3 * busy}  # medians of the rounds
        print(f"{name:16} {1e3 * busy:5.2f} ms of a core, {1 / wall:7.0f} images/s with {args.threads} threads")
    if args.json:
        args.json.write_text(json.dumps({"machine": machine.describe(), "rows": rows}, indent=1))


if __name__ == "__main__":
    main()

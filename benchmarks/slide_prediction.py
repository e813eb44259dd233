"""What reading a slide costs its prediction: tiles a second from the slide, against the bare model's images a second.

    python benchmarks/slide_prediction.py RUN SLIDE [--mpp 0.5] [--tile_um 112] [--rounds 5]

Both ask the same compiled program in batches of the same size, in one process, in turn: the bare model about batches
that lie in memory, the slide's about tiles that reader threads decode meanwhile, as `histojax slide` does. Printed are
the medians over the rounds and the median of the rounds' ratios.
"""

import argparse
import json
import pathlib
import statistics
import time
from collections.abc import Iterable

import numpy as np

from histojax.distributed.sharding import use_cpu_devices
from histojax.inference.predictor import Predictor
from histojax.slides.grid import GridSpec, make_grid, read_tiles
from histojax.slides.readers.reader import open_slide
from histojax.slides.tissue import TissueSpec, find_tissue


def main() -> None:
    """Prints a line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=pathlib.Path)
    parser.add_argument("slide", type=pathlib.Path)
    parser.add_argument("--mpp", type=float)
    parser.add_argument("--tile_um", type=float, default=112.0)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--threads", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    use_cpu_devices(2)
    predictor = Predictor.load(given.run, batch_size=given.batch_size)
    size = predictor.image_size
    with open_slide(given.slide, given.mpp) as slide:
        tissue = find_tissue(slide, TissueSpec())
        _, table = make_grid(slide, tissue, GridSpec(size, given.tile_um / size))
        n = len(table)
        rng = np.random.default_rng(0)
        memory = [rng.integers(0, 256, (given.batch_size, size, size, 3), dtype=np.uint8)] * -(-n // given.batch_size)

        def seconds(batches: Iterable[np.ndarray]) -> float:
            started = time.perf_counter()
            for _ in predictor.stream(batches):
                pass
            return time.perf_counter() - started

        seconds(memory[:2])  # compiles
        bare, whole = [], []
        for _ in range(given.rounds):
            bare.append(len(memory) * given.batch_size / seconds(memory))
            whole.append(n / seconds(read_tiles(slide, table, size, given.batch_size, given.threads)))
    ratios = [b / a for a, b in zip(bare, whole, strict=True)]
    facts = {
        "model": predictor.trained.config.model.name,
        "image_size": size,
        "tiles": n,
        "bare_images_per_second": round(statistics.median(bare), 1),
        "slide_tiles_per_second": round(statistics.median(whole), 1),
        "ratio": round(statistics.median(ratios), 3),
        "ratios": [round(ratio, 3) for ratio in ratios],
    }
    print(json.dumps(facts))


if __name__ == "__main__":
    main()

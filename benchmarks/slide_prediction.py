"""Cost of reading a slide during prediction: tiles/s from a slide against images/s of the model alone.

    python benchmarks/slide_prediction.py RUN SLIDE [--mpp 0.5] [--tile_um 112] [--rounds 5]

Both run the same compiled program with the same batch size in one process, in turn. The model alone predicts batches in
memory. The slide's tiles are decoded by reader threads at the same time, as in `histojax slide`. The program prints the
medians over all rounds and the median of the rounds' ratios.
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
    """Measure and print one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=pathlib.Path, help="work directory or checkpoint of the model")
    parser.add_argument("slide", type=pathlib.Path, help="slide to predict")
    parser.add_argument("--mpp", type=float, help="µm per level-0 pixel, if the slide stores none")
    parser.add_argument("--tile_um", type=float, default=112.0, help="side of a tile in µm (default: 112)")
    parser.add_argument("--batch_size", type=int, default=32, help="images per batch (default: 32)")
    parser.add_argument("--threads", type=int, default=4, help="threads that read the slide (default: 4)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of both measurements (default: 5)")
    args = parser.parse_args()
    use_cpu_devices(2)
    predictor = Predictor.load(args.run, batch_size=args.batch_size)
    size = predictor.image_size
    with open_slide(args.slide, args.mpp) as slide:
        tissue = find_tissue(slide, TissueSpec())
        _, table = make_grid(slide, tissue, GridSpec(size, args.tile_um / size))
        n = len(table)
        rng = np.random.default_rng(0)
        memory = [rng.integers(0, 256, (args.batch_size, size, size, 3), dtype=np.uint8)] * -(-n // args.batch_size)

        def seconds(batches: Iterable[np.ndarray]) -> float:
            started = time.perf_counter()
            for _ in predictor.stream(batches):
                pass
            return time.perf_counter() - started

        seconds(memory[:2])  # compiles the program
        model_alone, from_slide = [], []
        for _ in range(args.rounds):
            model_alone.append(len(memory) * args.batch_size / seconds(memory))
            from_slide.append(n / seconds(read_tiles(slide, table, size, args.batch_size, args.threads)))
    ratios = [b / a for a, b in zip(model_alone, from_slide, strict=True)]
    facts = {
        "model": predictor.trained.config.model.name,
        "image_size": size,
        "tiles": n,
        "bare_images_per_second": round(statistics.median(model_alone), 1),
        "slide_tiles_per_second": round(statistics.median(from_slide), 1),
        "ratio": round(statistics.median(ratios), 3),
        "ratios": [round(ratio, 3) for ratio in ratios],
    }
    print(json.dumps(facts))


if __name__ == "__main__":
    main()

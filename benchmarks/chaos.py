"""The long form of tests/distributed/chaos_test.py: kill -9 at bad moments, many times, also across devices.

    python -m benchmarks.chaos --kills 200 --seed 0

Prints each kill, then whether any image was lost or seen twice, what the work directory holds that it should not, and
how far the final arrays are from those of the undisturbed run. Exit code 1 if anything is wrong.
"""

import argparse
import collections
import itertools
import pathlib
import sys
import tempfile

import numpy as np

from data_pipelines.synthetic.generator import SyntheticSpec, generate
from tests.helpers.chaos import MOMENTS, chaos, leftovers
from tests.helpers.processes import Processes
from tests.helpers.programs import arrays

TOPOLOGIES = [(1, 1), (1, 2), (2, 1), (2, 2), (1, 4)]


def main() -> None:
    """Run it and print the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="chaos-") as name:
        folder = pathlib.Path(name)
        spec = SyntheticSpec(cases_per_subtype=(1, 2, 1, 1, 2, 1, 1, 1), images_per_patient=5, magnifications=("100X",))
        images = generate(folder / "images", spec)
        epochs = f"--config.train.epochs={given.kills + 10}"
        Processes(folder / "undisturbed" / "run", images, 1, 1, epochs).finish()
        moments = list(itertools.islice(itertools.cycle(MOMENTS), given.kills))
        result = chaos(
            folder / "chaos", images, moments, TOPOLOGIES, given.seed, epochs,
            report=lambda line: print(line, flush=True),
        )  # fmt: skip
        stream, count = result.stream()
        epochs_seen = [stream[i : i + count] for i in range(0, len(stream) - count + 1, count)]
        broken = sum(sorted(epoch) != sorted(epochs_seen[0]) or len(set(epoch)) != count for epoch in epochs_seen)
        left = leftovers(result.workdir)
        theirs, ours = arrays(folder / "undisturbed" / "run", "last"), arrays(result.workdir, "last")
        assert theirs.keys() == ours.keys()
        largest = max(
            float(np.max(np.abs(np.float64(ours[key]) - np.float64(value)), initial=0)) for key, value in theirs.items()
        )
    moments = collections.Counter(moment for moment, _ in result.kills)
    print(f"{len(result.kills)} kills ({', '.join(f'{n} × {moment}' for moment, n in moments.items())})")
    print(f"{len(epochs_seen)} epochs of {count} images, {broken} with an image lost or seen twice")
    print(f"left behind: {left or 'nothing'}")
    print(f"largest difference of a final parameter, statistic or optimizer array: {largest:.1e}")
    sys.exit(bool(broken or left or largest > 1e-5))


if __name__ == "__main__":
    main()

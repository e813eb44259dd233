"""`histojax predict …`: images in, a table of probabilities and labels out."""

import argparse
import logging
import pathlib
import sys

from histojax.cli import console
from histojax.core.errors import RunError

_log = logging.getLogger(__name__)


def main(words: list[str]) -> None:
    """Runs `histojax predict` with these words; whatever a user can mend is told in words, with exit code 1."""
    parser = argparse.ArgumentParser(
        "histojax predict",
        description="Probabilities and labels of images, resized as in training. What was killed goes on with the same "
        "command. Images that cannot be read are listed in <output's stem>.failed.csv. Research use only.",
    )
    parser.add_argument("run", help="work directory or checkpoint of the model; several, as A,B,C: their mean")
    parser.add_argument(
        "paths",
        nargs="+",
        metavar="PATH",
        help="images, folders, globs, lists (.csv: path[,patient_id][,label][,…]), zip archives",
    )
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("predictions.csv"), help=".csv or .parquet")
    parser.add_argument("--tta", choices=["none", "dihedral"], default="none", help="dihedral: mean over 8 views")
    parser.add_argument(
        "--calibrated", action="store_true", help="probabilities at the temperature that was fitted on validation"
    )
    parser.add_argument(
        "--threshold", default="", help="0.5, or LABEL=0.4,…; of two classes, CLASS=0.4; default: the validation's"
    )
    parser.add_argument("--batch_size", type=int, default=32, help="images asked at a time; the devices divide it")
    parser.add_argument("--threads", type=int, default=4, help="that read images")
    parser.add_argument(
        "--shard", default="0/1", metavar="I/N", help="only every N-th image, from the I-th (0 …) on; an --output each"
    )
    parser.add_argument("--strict", action="store_true", help="exit code 1 if an image cannot be read")
    parser.add_argument("--redo", action="store_true", help="makes a table anew that is there, or was begun")
    given = parser.parse_args(words)
    if given.threads < 1:
        parser.error(f"--threads={given.threads} is not at least 1")

    console.configure_logging()
    try:
        with console.errors_in_words():
            _predict(given)
    except KeyboardInterrupt:
        sys.exit("interrupted: the same command goes on")


def _predict(given: argparse.Namespace) -> None:
    from histojax.core import shards
    from histojax.inference.predict import images, prediction_table

    prediction_table.check_output(given.output)
    refs = shards.share(images.find(given.paths), given.shard)
    if not refs:
        raise RunError(f"--shard={given.shard}: fewer images than shards, and none for this one")

    # Behind the flags and the search: what is wrong there is told without waiting for jax.
    from histojax.distributed import runtime
    from histojax.inference.predict import prediction_run
    from histojax.inference.predictor import Predictor

    runtime.prepare()
    runs = [given.run] if pathlib.Path(given.run).exists() else [name for name in given.run.split(",") if name]
    if not runs:
        raise RunError("no run is named")
    models = [Predictor.load(run, batch_size=given.batch_size) for run in runs]
    cuts = prediction_run.thresholds_of(models, given.threshold, calibrated=given.calibrated)
    if cuts is not None:
        _log.info("a label is there from %s on", ", ".join(f"{name} {cut:.3g}" for name, cut in cuts.items()))
    failed = prediction_run.run(
        refs,
        models,
        given.output,
        thresholds=cuts,
        dihedral=given.tta == "dihedral",
        calibrated=given.calibrated,
        threads=given.threads,
        redo=given.redo,
    )
    print(f"{len(refs) - failed} of {len(refs)} images are in {given.output}")
    if failed:
        text = f"{failed} of {len(refs)} images could not be read: see {prediction_table.failures_of(given.output)}"
        if given.strict:
            sys.exit(f"error: {text}")
        print(text)

"""Does stain augmentation pay? Two studies of the same folds, with and without it, on images with other stains.

    histojax robustness runs/with/folds_deduplicated-200X/fold_1 --shifts stain    # likewise every fold of both studies
    python benchmarks/stain_augmentation.py runs/with/folds_deduplicated-200X runs/without/folds_deduplicated-200X \
        --output stain_augmentation.json

The test images of all folds are pooled; an image that several folds test counts once for each. Everything is paired:
the same images, and the same patients in each resample.
"""

import argparse
import pathlib
from collections.abc import Sequence

import numpy as np
import pandas as pd

from histojax.cli.console import exit_on_user_error
from histojax.core.errors import RunError
from histojax.core.files import write_json
from histojax.evaluation import bootstrap, predictions
from histojax.evaluation.metrics import Array
from histojax.evaluation.summary_blocks import Key
from histojax.studies.robustness import curves, predicted, shifts

FOLDER = "robustness"
METRICS = ("accuracy", "balanced_accuracy", "gmean", "auroc")


def main(argv: Sequence[str] | None = None) -> None:
    """Measure what stain augmentation does to accuracy, with and without other stains."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("augmented", type=pathlib.Path, help="folder of the folds trained with stain augmentation")
    parser.add_argument("plain", type=pathlib.Path, help="folder of the folds trained without")
    parser.add_argument("--output", type=pathlib.Path, required=True, help="JSON file")
    args = parser.parse_args(argv)
    with exit_on_user_error():
        study = compare(args.augmented, args.plain)
        write_json(args.output, study)
    for name, row in study["rows"].items():
        figures = (f"{metric} {shown(row[metric])}" for metric in METRICS)
        print(f"{name:<34} {'  '.join(figures)}")


def shown(figure: bootstrap.Estimate) -> str:
    """A figure with its interval."""
    return f"{figure['value']:.3f} [{figure['low']:.3f}, {figure['high']:.3f}]"


def compare(augmented: pathlib.Path, plain: pathlib.Path, **options: int) -> dict[str, object]:
    """Measure both studies at strength 0 and at the middle strength of every source of stains.

    Args:
      augmented: folder with `fold_1` and so on, each a run with its robustness.
      plain: likewise.
      **options: `n_resamples` and `seed` of the bootstrap.

    Raises:
      RunError: a fold has no robustness, or the folds do not have the same images.
    """
    chosen = [shift for shift in shifts.catalogue(microns=False, image_size=1).values() if shift.kind == "stain"]
    middle = len(chosen[0].strengths) // 2
    tables = {name: pooled(folder, chosen) for name, folder in (("augmented", augmented), ("plain", plain))}
    ids = {name: found[chosen[0].name][0]["image_id"].tolist() for name, found in tables.items()}
    if ids["augmented"] != ids["plain"]:
        raise RunError(f"{augmented} and {plain} have different test images: give two studies of the same folds")
    rows = tables["plain"][chosen[0].name][0]
    classes = predictions.class_names(rows)
    built = {name: curves.curve_statistic(found, chosen, classes, classes[1]) for name, found in tables.items()}

    def statistic(weights: Array) -> dict[Key, Array]:
        at, loss = {}, {}
        for name, (one, *_) in built.items():
            found = one(weights)
            for metric in METRICS:
                start = found[curves.AT, chosen[0].name, "0", metric]
                other = np.mean([found[curves.AT, shift.name, str(middle), metric] for shift in chosen], axis=0)
                at[name, metric], loss[name, metric] = start, start - other
        out: dict[Key, Array] = {}
        for metric in METRICS:
            for name in built:
                out[f"{name}, own stains", metric] = at[name, metric]
                out[f"{name}, loss to other stains", metric] = loss[name, metric]
            out["difference, own stains", metric] = at["augmented", metric] - at["plain", metric]
            out["difference, loss to other stains", metric] = loss["augmented", metric] - loss["plain", metric]
            out["loss over half of the plain loss", metric] = loss["augmented", metric] - loss["plain", metric] / 2
        return out

    _, members, unit, n_units = built["plain"]
    found = curves.estimate(statistic, members, unit, n_units, **options)
    names = list(dict.fromkeys(name for name, _ in found))
    return {
        "n_images": len(rows),
        "n_patients": n_units,
        "strength": chosen[0].strengths[middle],
        "sources": [shift.title for shift in chosen],
        "rows": {name: {metric: found[name, metric] for metric in METRICS} for name in names},
    }


def pooled(folder: pathlib.Path, chosen: Sequence[shifts.Shift]) -> dict[str, list[pd.DataFrame]]:
    """Predictions of the test images of all folds, by shift and strength; strength 0 is one table for all shifts."""
    folds = sorted(path for path in folder.glob("fold_*") if path.is_dir())
    if not folds:
        raise RunError(f"{folder} has no fold_1, fold_2, …: name the folder of a protocol of `histojax protocols`")
    start = _pooled(folds, None, 0.0)
    return {
        shift.name: [_pooled(folds, shift, strength) if strength else start for strength in shift.strengths]
        for shift in chosen
    }


def _pooled(folds: Sequence[pathlib.Path], shift: shifts.Shift | None, strength: float) -> pd.DataFrame:
    """Tables of the folds, one below the other, ordered by image; an image's name begins with that of its fold."""
    tables = []
    for fold in folds:
        file = predicted.file_of(fold / FOLDER / predicted.FOLDER, shift, strength)
        if not file.is_file():
            raise RunError(f"{file} is missing: run `histojax robustness` with --shifts stain on every fold")
        table = predictions.read(file).sort_values("image_id", ignore_index=True)
        tables.append(table.assign(image_id=f"{fold.name}/" + table["image_id"]))
    return pd.concat(tables, ignore_index=True)


if __name__ == "__main__":
    main()

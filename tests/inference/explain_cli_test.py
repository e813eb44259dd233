"""`histojax explain`, from a trained run to its files, and its error messages."""

import json
import pathlib
import sys
from typing import Any

import cv2
import numpy as np
import pytest

from histojax.core.errors import RunError
from histojax.inference.explain import checks
from histojax.inference.explain.dt_grad_cam import Rule
from histojax.inference.explain.explain import Explainer
from histojax.inference.predictor import Predictor
from tests.helpers import warm_start
from tests.helpers.command import histojax

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def images(ldcsf_run: pathlib.Path) -> list[pathlib.Path]:
    found = sorted(path for path in (ldcsf_run.parent / "tiles").rglob("*.png") if "mask" not in str(path))[:3]
    assert len(found) == 3
    return found


def test_all_classes_of_images_with_checks(
    ldcsf_run: pathlib.Path, images: list[pathlib.Path], tmp_path: pathlib.Path
) -> None:
    damaged = tmp_path / "damaged.png"
    damaged.write_bytes(b"no image")
    argv = ["explain", ldcsf_run, *images, damaged, "--output", tmp_path / "out", "--target=all", "--layer=stage3"]
    # One program as a smoke test of the verb.
    done = warm_start.run([sys.executable, "-m", "histojax", *map(str, argv), "--check"])
    assert done.returncode == 0, done.stderr
    printed, facts = done.stdout, json.loads((tmp_path / "out" / "explanations.json").read_text())
    classes = facts["classes"]
    assert facts["method"] == "DT Grad-CAM (otsu)"
    assert facts["layer"]["name"] == "stage3"
    assert [image["folder"] for image in facts["images"]] == [path.stem for path in images]
    assert "1 unreadable" in printed
    expected = Predictor.load(ldcsf_run, batch_size=8).predict([cv2.imread(str(path))[..., ::-1] for path in images])
    for image, row in zip(facts["images"], expected, strict=True):
        folder = tmp_path / "out" / image["folder"]
        assert [target["class"] for target in image["targets"]] == classes
        np.testing.assert_allclose([target["probability"] for target in image["targets"]], row, atol=1e-5)
        for target in image["targets"]:
            mask = cv2.imread(str(folder / f"{target['class']}.mask.png"), cv2.IMREAD_UNCHANGED)
            assert mask.shape == (image["height"], image["width"])
            assert (mask > 0).mean() == pytest.approx(target["marked_share"])
            features = json.loads((folder / f"{target['class']}.geojson").read_text())["features"]
            assert len(features) == len(target["parts"])
            assert cv2.imread(str(folder / f"{target['class']}.png")) is not None
            assert np.array(target["map"]).shape == (facts["layer"]["height"], facts["layer"]["width"])
    assert cv2.imread(str(tmp_path / "out" / "contact_sheet.png")) is not None
    results = json.loads((tmp_path / "out" / "checks.json").read_text())
    assert results["maps"] == 3 * len(classes)
    assert set(results["background_only"]["glass"]) == set(classes)
    for name in ("deletion", "insertion"):
        assert name in printed
        assert 0 <= results[name]["auc"] <= 1
    # Deletion starts, and insertion ends, at the image itself.
    explained = [
        (i, k) for i, image in enumerate(facts["images"]) for k, t in enumerate(image["targets"]) if t["map_max"] > 0
    ]
    mean = np.mean([expected[i, k] for i, k in explained])
    assert results["deletion"]["maps"] == len(explained)
    assert results["deletion"]["mean_probability"][0] == pytest.approx(mean, abs=1e-5)
    assert results["insertion"]["mean_probability"][-1] == pytest.approx(mean, abs=1e-5)


def test_plain_grad_cam_marks_no_area(
    ldcsf_run: pathlib.Path, images: list[pathlib.Path], tmp_path: pathlib.Path
) -> None:
    done = histojax("explain", ldcsf_run, images[0], "--output", tmp_path, "--method=grad_cam")
    assert done.returncode == 0, done.stderr
    assert "resnet has 1×1 positions for images of 32 pixels" in done.stderr
    facts = json.loads((tmp_path / "explanations.json").read_text())
    files = sorted(path.name for path in (tmp_path / images[0].stem).iterdir())
    assert files == sorted(f"{target['class']}.png" for target in facts["images"][0]["targets"])
    assert "threshold" not in facts["images"][0]["targets"][0]
    assert not (tmp_path / "checks.json").exists()


def test_predicted_classes_are_explained(ldcsf_run: pathlib.Path, images: list[pathlib.Path]) -> None:
    predictor = Predictor.load(ldcsf_run, batch_size=4)
    pixels = [cv2.imread(str(path))[..., ::-1] for path in images]
    probabilities = predictor.predict(pixels)

    def targets(threshold: float) -> list[list[int]]:
        predictor.thresholds = dict.fromkeys(predictor.classes, threshold)
        return [[e.target for e in explanations] for explanations in Explainer(predictor).explain(pixels)]

    assert targets(0.0) == [list(range(len(predictor.classes)))] * 3
    assert targets(1.1) == [[int(row.argmax())] for row in probabilities]


def test_checks_depend_only_on_the_seed(ldcsf_run: pathlib.Path, images: list[pathlib.Path]) -> None:
    explainer = Explainer(Predictor.load(ldcsf_run, batch_size=8), rule=Rule())
    pixels = [cv2.imread(str(images[0]))[..., ::-1]]
    one, same, other = (checks.check(explainer, pixels, seed=seed) for seed in (1, 1, 2))
    assert one == same
    assert one != other


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layer": "layer9"}, r"--layer=layer9: ldcsf has no such feature map; choose one of stage1 \(8×8\)"),
        ({"target": "tumour"}, "--target=tumour is not one of all, predicted, "),
        ({"min_part": 1.0}, r"--min_part=1\.0 is not a fraction"),
    ],
)
def test_unknown_layers_and_classes_are_reported(
    ldcsf_run: pathlib.Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(RunError, match=message):
        Explainer(Predictor.load(ldcsf_run, batch_size=4), **options)


def test_a_user_error_leaves_no_files(ldcsf_run: pathlib.Path, tmp_path: pathlib.Path) -> None:
    empty = tmp_path / "empty.png"
    empty.touch()
    for options, message in (
        (["--threshold=best"], "--threshold=best is not a rule: give otsu"),
        ([], "no image could be read"),
    ):
        done = histojax("explain", ldcsf_run, empty, "--output", tmp_path / "out", *options)
        assert done.returncode == 1
        assert message in done.stderr
        assert "Traceback" not in done.stderr
        assert not (tmp_path / "out").exists()

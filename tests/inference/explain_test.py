"""Thresholds, masks and outlines of DT Grad-CAM, similarity of maps, and pictures; against scikit-image and shapely."""

import dataclasses
import json
import pathlib

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
import shapely
import skimage.filters
import skimage.metrics
from flax import nnx

from histojax import models
from histojax.core.errors import RunError
from histojax.inference.explain import checks, dt_grad_cam, pictures
from histojax.inference.explain.dt_grad_cam import Rule, area, mark, otsu, outlines
from histojax.inference.explain.explain import file_names
from histojax.inference.explain.grad_cam import feature_map_shapes, grad_cam, upsample
from histojax.models.ops.intermediates import tap
from histojax.training.state import ModelState


def smooth(seed: int, height: int = 40, width: int = 50, sigma: float = 3.0) -> np.ndarray:
    """A map such as Grad-CAM makes: blobs, zero in many places, with maximum 1."""
    values = cv2.GaussianBlur(
        np.random.default_rng(seed).normal(size=(height, width)).astype(np.float32), (0, 0), sigma
    )
    values = np.maximum(values, 0)
    return values / values.max()


@pytest.mark.parametrize("seed", range(20))
def test_otsu_equals_scikit_image(seed: int) -> None:
    values = smooth(seed)
    # In float32 scikit-image rounds the centres of the bins.
    assert otsu(values) == pytest.approx(float(skimage.filters.threshold_otsu(values)), rel=1e-5)
    for wide in (values.astype(float), np.random.default_rng(seed).exponential(size=1000), values.astype(float) + 300):
        assert otsu(wide) == skimage.filters.threshold_otsu(wide)


def test_otsu_separates_two_groups_and_accepts_a_constant_map() -> None:
    values = np.concatenate([np.full(90, 0.1), np.full(10, 0.9)])
    assert 0.1 <= otsu(values) < 0.9
    assert otsu(np.full((3, 3), 0.25)) == 0.25
    assert not mark(np.zeros((30, 30), np.float32), Rule()).mask.any()


def test_other_threshold_rules() -> None:
    values = smooth(0)
    assert Rule.parse("percentile:90").threshold(values) == pytest.approx(np.percentile(values, 90))
    assert Rule.parse("mean_sd:1.5").threshold(values) == pytest.approx(values.mean() + 1.5 * values.std(), rel=1e-5)
    assert Rule.parse("mean_sd:-1").threshold(values) < values.mean()
    assert [str(Rule.parse(text)) for text in ("otsu", "percentile:99.5", "mean_sd:1")] == [
        "otsu", "percentile:99.5", "mean_sd:1",
    ]  # fmt: skip
    for text in ("", "Otsu", "percentile", "percentile:101", "percentile:-1", "mean_sd:", "mean_sd:nan", "otsu:1"):
        with pytest.raises(RunError, match="--threshold="):
            Rule.parse(text)


def test_small_parts_and_holes_are_dropped() -> None:
    values = np.zeros((100, 100), np.float32)
    values[10:50, 10:50] = 1  # stays
    values[20:25, 20:25] = 0  # 25 pixels: filled
    values[35:48, 30:48] = 0  # 234 pixels: stays
    values[70:75, 70:75] = 1  # 25 pixels: goes
    values[80:95, 80:95] = 1  # 225 pixels: stays
    found = mark(values, Rule(), min_part=0.01)
    wanted = values > 0
    wanted[20:25, 20:25] = True
    wanted[70:75, 70:75] = False
    np.testing.assert_array_equal(found.mask, wanted)
    assert sorted(len(rings) for rings in found.parts) == [1, 2]
    np.testing.assert_array_equal(mark(values, Rule(), min_part=0).mask, values > 0)


def test_holes_may_touch_at_corners_and_parts_may_not() -> None:
    two = np.zeros((100, 100), np.float32)  # 64 pixels each, fewer than the minimum of 100
    two[10:18, 10:18] = two[18:26, 18:26] = 1
    assert not mark(two, Rule(), min_part=0.01).mask.any()
    np.testing.assert_array_equal(mark(1 - two, Rule(), min_part=0.01).mask, two == 0)


@pytest.mark.parametrize("sigma", [0.1, 1.0, 3.0])
def test_outlines_lie_between_the_pixels(sigma: float) -> None:
    for seed in range(10):
        mask = smooth(seed, sigma=sigma) > 0.3
        polygons = [shapely.Polygon(rings[0], rings[1:]) for rings in outlines(mask)]
        assert all(polygon.is_valid for polygon in polygons)
        assert len(polygons) == cv2.connectedComponents(mask.astype(np.uint8), connectivity=4)[0] - 1
        y, x = np.mgrid[: mask.shape[0], : mask.shape[1]] + 0.5
        np.testing.assert_array_equal(shapely.contains_xy(shapely.union_all(polygons), x, y), mask)
        assert sum(map(area, outlines(mask))) == pytest.approx(sum(polygon.area for polygon in polygons))


def test_an_outline_at_the_border_has_no_superfluous_point() -> None:
    mask = np.zeros((20, 30), bool)
    mask[:, 10:] = True
    (ring,) = outlines(mask)[0]
    corners = {(10, 0.5), (10.5, 0), (29.5, 0), (30, 0.5), (30, 19.5), (29.5, 20), (10.5, 20), (10, 19.5)}
    assert {tuple(point) for point in ring.tolist()} == corners


def test_geojson(tmp_path: pathlib.Path) -> None:
    found = mark(smooth(1, 80, 120, 6.0), Rule())
    assert len(found.parts) > 1
    dt_grad_cam.write_geojson(tmp_path / "a.geojson", found, image="a", name="tumör")
    dt_grad_cam.write_geojson(tmp_path / "b.geojson", found, image="b", name="tumör")
    one, other = (json.loads((tmp_path / name).read_text("utf-8"))["features"] for name in ("a.geojson", "b.geojson"))
    shapes = [shapely.geometry.shape(feature["geometry"]) for feature in one]
    assert sum(shape.area for shape in shapes) == pytest.approx(found.mask.sum(), rel=0.01)
    measured = [feature["properties"]["measurements"] for feature in one]
    assert [row["area_px"] for row in measured] == sorted([shape.area for shape in shapes], reverse=True)
    assert measured[0]["share"] == pytest.approx(shapes[0].area / (80 * 120))
    assert one[0]["properties"]["classification"]["name"] == "tumör"
    assert len({feature["id"] for feature in one + other}) == 2 * len(one)


class Toy(nnx.Module):
    """logit_k = Σ over positions of w_k · map²; the map is the image halved."""

    def __init__(self) -> None:
        self.weights = nnx.Param(jnp.array([[1.0, 0.0], [-1.0, 2.0], [0.5, 1.0]]))

    def __call__(self, x: jax.Array) -> jax.Array:
        x = tap("half", x[:, ::2, ::2])
        return jnp.square(tap("square", x)).sum((1, 2)) @ self.weights[...]


def test_grad_cam_follows_its_equations() -> None:
    toy, x = Toy(), jnp.asarray(np.random.default_rng(0).normal(size=(2, 6, 8, 3)), jnp.float32)
    assert list(feature_map_shapes(toy, x)) == ["half", "square"]
    found = grad_cam(toy, x, jnp.array([0, 1]), "square")
    for one, image, target in zip(found, np.asarray(x[:, ::2, ::2]), (0, 1), strict=True):
        alpha = (2 * image * np.asarray(toy.weights[...])[:, target]).mean((0, 1))
        np.testing.assert_allclose(one, np.maximum((image * alpha).sum(-1), 0), rtol=1e-5, atol=1e-6)
    with pytest.raises(KeyError):
        grad_cam(toy, x, jnp.array([0, 1]), "third")


def test_layers_by_default() -> None:
    assert models.spec("resnet50").default_layer(["layer1", "layer2"]) == "layer2"
    assert models.spec("vgg16").default_layer(["conv4", "conv5", "pool5"]) == "conv5"
    assert models.spec("dinov2_vitb14").default_layer(["block1", "block2", "block3"]) == "block2"
    assert models.spec("vit").default_layer(["block1"]) == "block1"


def test_a_map_is_resized_to_its_image() -> None:
    cam = np.array([[0, 4], [0, 0]], np.float32)
    values = upsample(cam, 60, 40)
    assert values.shape == (40, 60)
    assert values.max() == 1
    assert values[0, -1] == 1
    assert values[-1, 0] == 0
    assert values[:20, 30:].mean() > 4 * values[20:, :30].mean()
    assert not upsample(np.zeros((2, 2), np.float32), 60, 40).any()


def test_similarities_equal_scikit_image_and_scipy() -> None:
    a, b = smooth(0), smooth(1)
    assert checks.spearman(a, b) == pytest.approx(scipy.stats.spearmanr(a.ravel(), b.ravel()).statistic)
    wanted = skimage.metrics.structural_similarity(
        a.astype(float), b.astype(float), data_range=1, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
    )
    assert checks.ssim(a, b) == pytest.approx(wanted, abs=1e-6)
    assert checks.ssim(a, a) == pytest.approx(1)
    flat = np.zeros_like(a)
    assert checks.spearman(a, flat) is None
    assert checks.ssim(a, flat) is None


def test_weights_are_shuffled_within_each_array() -> None:
    head = jnp.arange(100.0).reshape(10, 10)
    model = ModelState(
        nnx.State({"conv": {"kernel": head + 1}, "head": {"kernel": head}}), nnx.State({}), nnx.State({})
    )
    every = checks.shuffle_weights(model, np.random.default_rng(0))
    for name in ("conv", "head"):
        before, after = np.asarray(model.params[name]["kernel"]), np.asarray(every.params[name]["kernel"])
        assert (before != after).mean() > 0.9
        np.testing.assert_array_equal(np.sort(before, axis=None), np.sort(after, axis=None))
    only = checks.shuffle_weights(model, np.random.default_rng(0), part="head")
    np.testing.assert_array_equal(only.params["conv"]["kernel"], head + 1)
    assert (np.asarray(only.params["head"]["kernel"]) != np.asarray(head)).any()


def test_file_names_are_safe_and_unique() -> None:
    assert file_names(["A/b", "a b", "A_B", "..", "c"]) == ["A_b", "a_b_2", "A_B_3", "_", "c"]


def test_pictures_of_any_shape_and_name(tmp_path: pathlib.Path) -> None:
    for height, width in ((1, 1), (40, 50), (30, 700), (900, 20)):
        values = np.random.default_rng(0).random((height, width), np.float32)
        image = np.random.default_rng(1).integers(0, 256, (height, width, 3), dtype=np.uint8)
        name = f"$x^2$ <b>{height}</b> 標本\n" + "n" * 200
        picture = pictures.Picture(image, values, mark(values, Rule()), name, "tumor: 0.5", "remark")
        small = picture.thumbnail()
        assert max(small.values.shape) <= 330
        assert small.image.shape[:2] == small.values.shape
        pictures.write_overlay(tmp_path / f"{height}.png", picture)
        plain = dataclasses.replace(small, marking=None)
        pictures.write_contact_sheet(tmp_path / f"{height}_sheet.png", [[small, plain], [plain]], "title")
        for path in (f"{height}.png", f"{height}_sheet.png"):
            assert cv2.imread(str(tmp_path / path)).std() > 1


def test_the_image_shows_where_the_map_is_zero() -> None:
    image = np.full((2, 2, 3), (200, 100, 180), np.uint8)
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[0, 0]
    values = np.array([[0, 1], [0, 0]], np.float32)
    found = pictures.blend(image, values)
    assert (found[1, 1] == grey).all()
    red, green, blue = found[0, 1].astype(int)
    assert red > 3 * max(green, blue)

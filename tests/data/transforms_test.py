"""Pixel operations against hand calculations; strength 0 is off, and only the random generator decides."""

import dataclasses

import cv2
import numpy as np
import pytest

from data_pipelines.errors import BadImageError
from data_pipelines.pixels import decode, resize
from data_pipelines.stain import LIGHT, find_stains
from histojax.data import transforms
from histojax.data.transforms import AugmentSpec, Orientation, augment, orient, random_crop
from tests.helpers.tissue_pictures import tissue_texture

OFF = AugmentSpec(flips=False, quarter_turns=False)
ON = {
    "flips": {"flips": True},
    "quarter_turns": {"quarter_turns": True},
    "crop": {"crop_scale": 0.5},
    "colour": {"colour_jitter": 0.3},
    "stain": {"stain_jitter": 0.3},
    "macenko": {"macenko_jitter": 0.3},
    "blur": {"blur": 2.0},
}
ON["all"] = {key: value for fields in ON.values() for key, value in fields.items()}


def noise(height=23, width=35, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def tissue(height=40, width=60):
    """Smooth pink and violet, away from black and white."""
    rows, columns = np.mgrid[:height, :width]
    wave = np.stack([np.sin(rows / 7 + k) + np.cos(columns / 9 - k) for k in range(3)], axis=-1)
    return np.rint(np.array([190, 120, 180]) + 20 * wave).astype(np.uint8)


class Fixed:
    """A generator that returns given draws."""

    def __init__(self, *draws):
        self._draws = list(draws)

    def uniform(self, low, high, size):
        draw = np.asarray(self._draws.pop(0), np.float64)
        assert draw.shape == (size,)
        assert (low <= draw).all()
        assert (draw <= high).all()
        return draw


# ---- Decoding and size ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".png", ".bmp"])
def test_decode_gives_rgb(suffix):
    image = noise()
    done, data = cv2.imencode(suffix, image[..., ::-1])  # OpenCV writes BGR
    assert done
    got = decode(data.tobytes())
    np.testing.assert_array_equal(got, image)
    assert got.dtype == np.uint8


def test_jpeg_decodes_as_in_opencv():
    data = cv2.imencode(".jpg", tissue())[1].tobytes()
    expected = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
    np.testing.assert_array_equal(decode(data), expected)


@pytest.mark.parametrize("kind", ["grey", "with alpha", "of 16 bits"])
def test_other_pngs_are_read_as_rgb(kind):
    image = noise()
    if kind == "grey":
        stored, expected = image[..., 0], np.repeat(image[..., :1], 3, axis=-1)
    elif kind == "with alpha":
        stored, expected = np.dstack([image[..., ::-1], np.full(image.shape[:2], 255, np.uint8)]), image
    else:
        stored, expected = image[..., ::-1].astype(np.uint16) * 257, image
    data = cv2.imencode(".png", stored)[1].tobytes()
    np.testing.assert_array_equal(decode(data), expected)


def test_truncated_png_is_refused():
    data = cv2.imencode(".png", tissue())[1].tobytes()
    with pytest.raises(BadImageError, match="cannot decode"):
        decode(data[: len(data) // 2])


@pytest.mark.parametrize("data", [b"no image", b"\x89PNG\r\n\x1a\n", b""])
def test_bytes_other_than_images_are_refused(data):
    with pytest.raises(BadImageError, match=f"cannot decode {len(data)} bytes"):
        decode(data)


@pytest.mark.parametrize("shape", [(23, 35), (460, 700), (8, 100), (100, 8), (16, 16)])
def test_resize_gives_exactly_the_requested_size(shape):
    got = resize(noise(*shape), 16)
    assert (got.shape, got.dtype) == ((16, 16, 3), np.uint8)


def test_resize_down_averages_and_up_interpolates():
    quarters = np.repeat(np.repeat(np.array([[0, 100], [50, 250]], np.uint8), 8, 0), 8, 1)[..., None].repeat(3, -1)
    # Each pixel of the result covers a quarter; averaging is exact, so stripes within a quarter vanish.
    assert resize(quarters, 2)[..., 0].tolist() == [[0, 100], [50, 250]]
    stripes = np.tile(np.array([0, 200], np.uint8), 8)[None, :, None].repeat(16, 0).repeat(3, -1)
    assert (resize(stripes, 4) == 100).all()
    ramp = resize(np.array([[0, 200], [0, 200]], np.uint8)[..., None].repeat(3, -1), 4)
    assert (np.diff(ramp[0, :, 0].astype(int)) >= 0).all()
    assert ramp[0, 1, 0] not in (0, 200)


def test_resize_to_its_own_size_changes_nothing():
    image = noise(16, 16)
    np.testing.assert_array_equal(resize(image, 16), image)


# ---- All of them ---------------------------------------------------------------------------------------------------


def test_with_everything_off_only_resize_is_left():
    for image in (noise(), noise(16, 16), noise(50, 9)):
        np.testing.assert_array_equal(augment(image, 16, OFF, np.random.default_rng(0)), resize(image, 16))


@pytest.mark.parametrize("name", ON)
def test_result_is_a_function_of_the_generator(name):
    spec = dataclasses.replace(OFF, **ON[name])
    image, before = tissue(), tissue()
    results = [augment(image, 16, spec, np.random.default_rng(seed)) for seed in (*range(8), 0)]
    for result in results:
        assert (result.shape, result.dtype) == ((16, 16, 3), np.uint8)
        assert result.flags["C_CONTIGUOUS"]
    np.testing.assert_array_equal(results[0], results[-1])
    assert any((result != results[0]).any() for result in results)
    np.testing.assert_array_equal(image, before)  # the input is unchanged


@pytest.mark.parametrize(("fields", "count"), [(ON["flips"], 4), (ON["quarter_turns"], 4), (AugmentSpec().__dict__, 8)])
def test_flips_and_turns_permute_pixels_and_reach_the_whole_group(fields, count):
    spec = dataclasses.replace(OFF, **fields)
    image = noise(16, 16)
    seen = {augment(image, 16, spec, np.random.default_rng(seed)).tobytes() for seed in range(60)}
    flipped = (image, image[::-1], image[:, ::-1], image[::-1, ::-1])
    turned = tuple(np.rot90(image, k) for k in range(4))
    dihedral = turned + tuple(np.rot90(image[:, ::-1], k) for k in range(4))
    group = {4: turned if spec.quarter_turns else flipped, 8: dihedral}[count]
    assert seen == {member.tobytes() for member in group}


@pytest.mark.parametrize("name", ["flips", "quarter_turns"])  # separately: together, one hides a bias of the other
def test_flips_and_turns_are_uniform(name):
    image = np.arange(4, dtype=np.uint8).reshape(2, 2)[..., None].repeat(3, -1)
    rng = np.random.default_rng(0)
    spec = dataclasses.replace(OFF, **ON[name])
    corners = [int(augment(image, 2, spec, rng)[0, 0, 0]) for _ in range(800)]
    # Each of the four corners: 200 ± 12 times.
    assert np.abs(np.bincount(corners, minlength=4) - 200).max() < 50


# ---- Crop ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(46, 70), (40, 40), (70, 30)])
@pytest.mark.parametrize(("scale", "ratio"), [(0.2, 4 / 3), (0.7, 1.0), (0.9, 2.0)])
def test_crop_is_a_window_of_the_requested_area(shape, scale, ratio):
    height, width = shape
    # Each pixel holds its position.
    rows, columns = np.mgrid[:height, :width]
    image = np.stack([rows, columns, np.zeros_like(rows)], axis=-1).astype(np.uint8)
    rng = np.random.default_rng(0)
    areas, tops, lefts, ends = [], set(), set(), set()
    for _ in range(300):
        window = random_crop(image, scale, ratio, rng)
        h, w = window.shape[:2]
        top, left = window[0, 0, :2].astype(int)
        np.testing.assert_array_equal(window, image[top : top + h, left : left + w])
        areas.append(h * w / (height * width))
        departure = (h / w) / (height / width)
        slack = 1 + 0.5 / h + 0.5 / w + 0.01  # h and w are integers
        assert 1 / (ratio * slack) <= departure <= ratio * slack
        tops.add(int(top))
        lefts.add(int(left))
        ends.add((top + h == height, left + w == width))
    # Rounding to whole pixels changes the area slightly.
    assert min(areas) >= scale - 0.5 / height - 0.5 / width
    assert max(areas) <= 1
    assert max(areas) - min(areas) > 0.4 * (1 - scale)
    assert len(tops) > 2
    assert len(lefts) > 2
    assert {(True, False), (False, True), (False, False)} <= ends


def test_crop_is_resized():
    spec = dataclasses.replace(OFF, crop_scale=0.5)
    image = noise(40, 40)
    window = random_crop(image, 0.5, spec.crop_ratio, np.random.default_rng(3))
    assert window.shape[:2] != (40, 40)
    np.testing.assert_array_equal(augment(image, 16, spec, np.random.default_rng(3)), resize(window, 16))


def test_crop_of_a_single_pixel_is_that_pixel():
    rng = np.random.default_rng(0)
    assert {random_crop(noise(1, 1), 0.05, 2.0, rng).shape for _ in range(20)} == {(1, 1, 3)}


# ---- Colour --------------------------------------------------------------------------------------------------------


def test_colour_jitter_of_strength_0_changes_nothing():
    image = noise()
    np.testing.assert_array_equal(transforms.jitter_colour(image, 0.0, np.random.default_rng(0)), image)


def test_brightness_contrast_and_saturation_by_hand():
    image = np.array([[[100, 100, 100], [40, 60, 80]]], np.uint8)
    dark = transforms.jitter_colour(image, 0.5, Fixed([0.5, 1, 1]))
    assert dark.tolist() == [[[50, 50, 50], [20, 30, 40]]]
    # The image mean is 80; every pixel moves half the distance to it.
    flat = transforms.jitter_colour(image, 0.5, Fixed([1, 0.5, 1]))
    assert flat.tolist() == [[[90, 90, 90], [60, 70, 80]]]
    # Each pixel moves half the distance to its own grey: 100 and 60.
    pale = transforms.jitter_colour(image, 0.5, Fixed([1, 1, 0.5]))
    assert pale.tolist() == [[[100, 100, 100], [50, 60, 70]]]


def test_colour_jitter_applies_the_three_changes_in_order():
    image, rng = tissue(), np.random.default_rng(0)
    for brightness, contrast, saturation in rng.uniform(0.7, 1.3, (20, 3)):
        x = image * brightness
        x = (x - x.mean()) * contrast + x.mean()
        x = (x - x.mean(-1, keepdims=True)) * saturation + x.mean(-1, keepdims=True)
        got = transforms.jitter_colour(image, 0.3, Fixed([brightness, contrast, saturation]))
        assert np.abs(got - np.clip(x, 0, 255)).max() < 1.1  # only one rounding


def test_colour_jitter_is_clipped_at_black_and_white():
    image = np.array([[[250, 250, 250], [10, 200, 10]]], np.uint8)
    bright = transforms.jitter_colour(image, 0.5, Fixed([1.5, 1, 1.5]))
    assert bright[0, 0].tolist() == [255, 255, 255]
    assert bright[0, 1, 1] == 255
    assert bright[0, 1, 0] == 0  # not wrapped around


# ---- Stains --------------------------------------------------------------------------------------------------------

# Ruifrok & Johnston 2001, table of optical densities, normalised here independently of the source.
HEMATOXYLIN, EOSIN, DAB = (
    np.array(row) / np.linalg.norm(row) for row in ([0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78])
)


def stained(h, e, dab=0.0):
    """Return the pixel with these densities (natural logarithms)."""
    rgb = np.exp(-(h * HEMATOXYLIN + e * EOSIN + dab * DAB)) * 256 - 1
    return np.clip(np.rint(rgb), 0, 255).astype(np.uint8)


def test_stain_jitter_of_strength_0_is_within_a_grey_level():
    for image in (noise(64, 64), tissue(), np.full((2, 2, 3), 255, np.uint8), np.zeros((2, 2, 3), np.uint8)):
        got = transforms.jitter_stain(image, 0.0, np.random.default_rng(0))
        assert np.abs(got.astype(int) - image).max() <= 1


@pytest.mark.parametrize("dab", [0.0, 0.2])
def test_each_stain_density_is_scaled_and_shifted_separately(dab):
    densities = [(0.2, 0.3), (0.8, 0.1), (0.1, 0.9), (0.5, 0.5), (0.0, 0.4)]
    image = np.array([[stained(h, e, dab) for h, e in densities]])
    for scale, shift in (
        ((1.3, 1.0), (0, 0)),
        ((1.0, 0.7), (0, 0)),
        ((1, 1), (0.03, -0.02)),
        ((1.2, 0.8), (0.01, 0.03)),
    ):
        got = transforms.jitter_stain(image, 0.3, Fixed(scale, shift))
        expected = [stained(h * scale[0] + shift[0], e * scale[1] + shift[1], dab) for h, e in densities]
        # Both the input and the result are rounded to grey levels.
        assert np.abs(got.astype(int) - np.array([expected])).max() <= 2


def test_white_stays_whitish():
    white = np.full((4, 4, 3), 255, np.uint8)
    rng = np.random.default_rng(0)
    darkest = min(int(transforms.jitter_stain(white, 0.2, rng).min()) for _ in range(50))
    # White has no stain to scale; shifts of at most 0.02 each darken by at most 1 - exp(-0.04 · 0.99): 10 levels.
    assert 240 <= darkest < 255


def test_stain_jitter_moves_tissue():
    image = tissue()
    rng = np.random.default_rng(0)
    moved = [np.abs(transforms.jitter_stain(image, 0.2, rng).astype(int) - image).mean() for _ in range(10)]
    assert 1 < np.mean(moved) < 40


# ---- Blur ----------------------------------------------------------------------------------------------------------


def test_blur_hits_half_of_the_images_and_keeps_the_mean():
    spec = dataclasses.replace(OFF, blur=2.0)
    image = noise(32, 32)
    results = [augment(image, 32, spec, np.random.default_rng(seed)) for seed in range(200)]
    blurred = [result for result in results if (result != image).any()]
    assert 70 <= len(blurred) <= 130
    # A sigma near the minimum, 0.1, changes nothing; larger ones reduce roughness and keep the brightness.
    for result in blurred:
        assert result.std() < image.std()
        assert abs(result.mean() - image.mean()) < 3
    assert min(result.std() for result in blurred) < image.std() / 3


# ---- Macenko's stains ----------------------------------------------------------------------------------------------


def test_the_stains_of_the_image_itself_are_scaled_and_shifted():
    image = tissue_texture(64, 80)
    vectors = find_stains(image).vectors

    def amounts(pixels):
        return -np.log((pixels.reshape(-1, 3) + 1.0) / LIGHT) @ np.linalg.pinv(vectors)

    same = transforms.jitter_macenko(image, 0.5, Fixed((1.0, 1.0), (0.0, 0.0)))
    assert np.abs(same.astype(int) - image).max() <= 1
    changed = transforms.jitter_macenko(image, 1.0, Fixed((1.2, 0.7), (0.0, 0.1)))
    clear = (changed > 20).all(-1).ravel() & (changed < 235).all(-1).ravel()  # a grey level is little density there
    expected = amounts(image) * (1.2, 0.7) + (0, 0.1)
    np.testing.assert_allclose(amounts(changed)[clear], expected[clear], atol=0.1)
    assert clear.sum() > 500


def test_an_image_without_stains_is_unchanged_and_draws_as_many_numbers():
    glass = np.full((20, 20, 3), 243, np.uint8)
    rngs = [np.random.default_rng(0), np.random.default_rng(0)]
    np.testing.assert_array_equal(transforms.jitter_macenko(glass, 0.3, rngs[0]), glass)
    transforms.jitter_macenko(tissue_texture(64, 80), 0.3, rngs[1])
    assert rngs[0].random() == rngs[1].random()


@pytest.mark.parametrize("up_down", [False, True])
@pytest.mark.parametrize("left_right", [False, True])
@pytest.mark.parametrize("quarters", range(4))
def test_flips_and_turns_in_one_pass_are_those_of_numpy(up_down: bool, left_right: bool, quarters: int) -> None:
    image = np.random.default_rng(0).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    image.setflags(write=False)  # as a mapped cache
    expected = np.flipud(image) if up_down else image
    expected = np.rot90(np.fliplr(expected) if left_right else expected, quarters)
    orientation = Orientation.of(up_down, left_right, quarters)
    np.testing.assert_array_equal(orient(image, orientation), expected)
    rows = np.zeros((2, 5, 5, 3), np.uint8)
    orient(image, orientation, rows[1])
    np.testing.assert_array_equal(rows[1], expected, "it must be written in place")
    assert not rows[0].any()

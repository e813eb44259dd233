"""Each shift has the physical meaning that it claims, and changes nothing at strength 0."""

import io

import cv2
import numpy as np
import pytest
from PIL import Image as Pillow
from scipy.ndimage import gaussian_filter

from data_pipelines import stain
from histojax.core.errors import RunError
from histojax.studies.robustness import shifts
from histojax.studies.robustness.shifts import ImageFacts
from tests.helpers.tissue_pictures import GLASS, tissue_texture

IMAGE = tissue_texture(120, 160, seed=3)
FACTS = ImageFacts(key=7, stains=stain.find_stains(IMAGE), mpp=0.5)
CATALOGUE = shifts.catalogue(microns=True, image_size=64)


@pytest.mark.parametrize("name", CATALOGUE)
def test_strength_0_is_the_image_and_others_change_it(name: str) -> None:
    shift = CATALOGUE[name]
    assert 4 <= len(shift.strengths) == len(shift.labels) == len(set(shift.labels)) <= 5
    assert list(shift.strengths) == sorted(shift.strengths)
    distances = {x: np.abs(shift.apply(IMAGE, x, FACTS).astype(int) - IMAGE).mean() for x in shift.strengths}
    assert distances[0] == 0
    assert all(distance > 0 for x, distance in distances.items() if x)
    for side in ([x for x in shift.strengths if x <= 0][::-1], [x for x in shift.strengths if x >= 0]):
        if shift.kind not in ("shift", "rotation"):  # these leave the texture, so the distance soon stays
            assert [distances[x] for x in side] == sorted(distances[x] for x in side)


def degrees(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    return np.degrees(np.arccos(np.clip((first * second).sum(1), -1, 1)))


@pytest.mark.parametrize("name", shifts.stain_sources())
def test_full_strength_has_the_vectors_and_strengths_of_the_source(name: str) -> None:
    stored = shifts.stain_sources()[name]
    source = stain.Stains(np.array(stored["vectors"]), np.array(stored["strength"]))
    assert np.linalg.norm(source.vectors, axis=1) == pytest.approx([1, 1], abs=1e-3)
    found = stain.find_stains(shifts.towards_stains(IMAGE, FACTS.stains, source, 1.0))
    assert found is not None
    assert FACTS.stains is not None
    assert (degrees(found.vectors, source.vectors) < 3).all()
    assert found.strength == pytest.approx(source.strength, rel=0.1)
    assert (degrees(FACTS.stains.vectors, source.vectors) > 3).any()  # it was another before
    half = stain.find_stains(shifts.towards_stains(IMAGE, FACTS.stains, source, 0.5))
    assert half is not None
    assert half.strength == pytest.approx((FACTS.stains.strength + source.strength) / 2, rel=0.1)


def test_pigment_keeps_its_density_when_stains_change() -> None:
    found = FACTS.stains
    assert found is not None
    rest = np.cross(*found.vectors)  # of neither stain
    rest *= np.sign(rest.sum()) / np.linalg.norm(rest)
    amounts = np.array([[0.6, 0.3], [0.6, 0.3]])
    density = amounts @ found.vectors + np.array([[0.0], [0.1]]) * rest
    image = np.rint(stain.LIGHT * np.exp(-density) - 1).astype(np.uint8)[None]
    moved = shifts.towards_stains(image, found, stain.Stains(found.vectors[::-1], found.strength[::-1]), 1.0)
    both = -np.log((moved[0].astype(float)) / stain.LIGHT)
    assert both[1] - both[0] == pytest.approx(0.1 * rest, abs=0.02)


def test_an_image_without_tissue_keeps_its_colours() -> None:
    glass = np.full((40, 40, 3), GLASS, np.uint8)
    shift = CATALOGUE["stain_crc"]
    assert (shift.apply(glass, 1.0, ImageFacts(0, stain.find_stains(glass))) == glass).all()


def test_brightness_and_white_point_scale_light() -> None:
    grey = np.full((2, 2, 3), 100, np.uint8)
    assert shifts.brighten(grey, 0.1)[0, 0].tolist() == [110, 110, 110]
    assert shifts.brighten(grey + 150, 0.1)[0, 0].tolist() == [255, 255, 255]
    assert shifts.warm(grey, 0.1)[0, 0].tolist() == [110, 100, 90]


@pytest.mark.parametrize(("um", "mpp"), [(1.0, 0.5), (2.0, 0.5), (1.0, 0.25)])
def test_defocus_spreads_a_point_by_micrometres(um: float, mpp: float) -> None:
    point = np.zeros((129, 129, 3), np.uint8)
    point[44:85, 64] = 255  # a line across, so that its profile is a Gaussian
    profile = shifts.defocus(point, um, mpp)[64, :, 0].astype(float)
    x = np.arange(129) - 64
    assert np.sqrt((profile * x**2).sum() / profile.sum()) * mpp == pytest.approx(um, rel=0.05)
    expected = gaussian_filter(IMAGE.astype(float), (um / mpp, um / mpp, 0), mode="mirror")
    assert np.abs(shifts.defocus(IMAGE, um, mpp) - expected).max() <= 2


@pytest.mark.parametrize("mpp", [None, 0.0, -1.0, float("nan")])
def test_defocus_in_micrometres_needs_their_size(mpp: float | None) -> None:
    with pytest.raises(ValueError, match="needs the µm per pixel"):
        shifts.defocus(IMAGE, 1.0, mpp)


def test_without_it_defocus_is_in_pixels_of_the_input() -> None:
    shift = shifts.catalogue(microns=False, image_size=40)["defocus"]
    assert "pixels of the input" in shift.unit
    expected = cv2.GaussianBlur(IMAGE, (0, 0), 2 * 160 / 40, sigmaY=2 * 120 / 40, borderType=cv2.BORDER_REFLECT_101)
    assert (shift.apply(IMAGE, 2, ImageFacts(0)) == expected).all()


@pytest.mark.parametrize(("strength", "quality"), [(1, 95), (2, 75), (3, 50), (4, 30)])
def test_jpeg_is_that_of_its_quality(strength: int, quality: int) -> None:
    found = CATALOGUE["jpeg"].apply(IMAGE, strength, FACTS)
    stored = cv2.imencode(".jpg", IMAGE[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    assert (found == cv2.imdecode(stored, cv2.IMREAD_COLOR)[..., ::-1]).all()
    file = io.BytesIO()
    Pillow.fromarray(IMAGE).save(file, format="JPEG", quality=quality, subsampling=2)
    assert np.abs(found.astype(int) - np.asarray(Pillow.open(file))).mean() < 1  # another decoder rounds otherwise


def waves(period: float) -> np.ndarray:
    x = np.arange(201) - 100
    row = np.rint(128 + 100 * np.cos(2 * np.pi * x / period)).astype(np.uint8)
    return np.repeat(np.repeat(row[None, :, None], 201, 0), 3, 2)


@pytest.mark.parametrize("factor", [0.8, 1.25])
def test_scale_divides_lengths_in_pixels(factor: float) -> None:
    inside = np.s_[60:140, 60:140]
    found, expected = shifts.rescale(waves(20), factor)[inside], waves(20 / factor)[inside]
    assert np.abs(found.astype(int) - expected).mean() < 3
    assert np.abs(found.astype(int) - waves(20)[inside]).mean() > 30


def test_noise_has_its_deviation_and_depends_on_the_image_only() -> None:
    grey = np.full((200, 200, 3), 128, np.uint8)
    noisy = shifts.add_noise(grey, 8, key=1).astype(float) - 128
    assert noisy.std() == pytest.approx(8, rel=0.02)
    assert abs(noisy.mean()) < 0.1
    assert (shifts.add_noise(grey, 8, key=1) == shifts.add_noise(grey, 8, key=1)).all()
    other = shifts.add_noise(grey, 8, key=2).astype(float) - 128
    assert abs(np.corrcoef(noisy.ravel(), other.ravel())[0, 1]) < 0.02
    stronger = shifts.add_noise(grey, 16, key=1).astype(float) - 128
    assert np.corrcoef(noisy.ravel(), stronger.ravel())[0, 1] > 0.99  # the same noise, stronger


def test_translation_moves_whole_pixels_and_reflects() -> None:
    moved = shifts.translate(IMAGE, 0.1)  # 12 down, 16 right
    assert (moved[12:, 16:] == IMAGE[:-12, :-16]).all()
    assert (moved[11, 16:] == IMAGE[1, :-16]).all()


def test_rotation_turns_counterclockwise() -> None:
    square = IMAGE[:, :120]
    assert np.abs(shifts.rotate(square, 90).astype(int) - np.rot90(square)).max() <= 1
    assert (shifts.rotate(square, 45) > 0).all()  # corners are filled by reflection


def test_shifts_are_chosen_by_name_or_kind() -> None:
    assert [shift.name for shift in shifts.choose(CATALOGUE, [])] == list(CATALOGUE)
    assert len(shifts.choose(CATALOGUE, ["stain"])) == len(shifts.stain_sources()) == 5
    assert [shift.name for shift in shifts.choose(CATALOGUE, ["jpeg", "stain_crc"])] == ["stain_crc", "jpeg"]
    with pytest.raises(RunError, match=r"--shifts: jpg is not one of stain, .*did you mean 'jpeg'"):
        shifts.choose(CATALOGUE, ["jpg"])


def test_sources_state_where_they_come_from() -> None:
    for source in shifts.stain_sources().values():
        assert source["images"] >= 10
        assert source["license"]
        assert source["content"]

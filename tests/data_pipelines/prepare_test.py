"""Preparing a dataset root: what is stored, when it is reused, and that a failure leaves nothing behind."""

import fcntl
import functools
import json
import pathlib
import subprocess
import sys
import tarfile
import time

import pytest

from data_pipelines import prepare as module
from data_pipelines import tfds_builder
from data_pipelines.breakhis import scan as breakhis_scan
from data_pipelines.errors import DataError
from data_pipelines.prepare import Prepared, open_images, prepare
from data_pipelines.synthetic.generator import SyntheticSpec, generate
from data_pipelines.synthetic.tiles import TilesSyntheticSpec, generate_tiles
from tests.conftest import WriteImages

NAMES = [
    f"{patient}-{magnification}-{i:03d}.png"
    for patient in ("SOB_B_A-14-22549AB", "SOB_M_DC-14-2523", "SOB_M_PC-15-190EF")
    for magnification in (40, 100)
    for i in (1, 2)
]
FEW_TILES = TilesSyntheticSpec(patients=4, tiles_per_slide=2, size=32)
TREE = [f"BreaKHis_v1/{'benign' if '_B_' in name else 'malignant'}/{name}" for name in NAMES]


@pytest.fixture
def root(tmp_path: pathlib.Path, write_images: WriteImages) -> pathlib.Path:
    write_images(tmp_path / "root", TREE)
    return tmp_path / "root"


@pytest.fixture
def base(tmp_path: pathlib.Path) -> str:
    return str(tmp_path / "base")


def _times(folder: pathlib.Path) -> dict[pathlib.Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def _assert_stored(prepared: Prepared, root: pathlib.Path) -> None:
    """Check that the table and the stored images match the files, row by row."""
    files = {path.stem: path for path in root.rglob("*.png")}
    stored = open_images(prepared.directory)
    assert len(stored) == len(prepared.records)
    for i, record in enumerate(prepared.records):
        assert stored[i]["image"] == files[record.image_id].read_bytes()
        assert stored[i]["image_id"].decode() == record.image_id


def test_second_call_reuses_the_prepared_data(root: pathlib.Path, base: str) -> None:
    first = prepare("breakhis", str(root), magnification="100X", directory=base)
    _assert_stored(first, root)
    assert sorted(first.records.column("image_id")) == sorted(n[:-4] for n in NAMES if "-100-" in n)
    assert not first.synthetic
    assert first.description == f"BreakHis images of {root}, 100X"
    before = _times(pathlib.Path(base))
    second = prepare("breakhis", str(root), magnification="100X", directory=base)
    assert _times(pathlib.Path(base)) == before  # nothing was written or rewritten
    assert (second.directory, list(second.records), second.summary) == (
        first.directory,
        list(first.records),
        first.summary,
    )


def test_table_holds_the_fields_of_the_file_names(root: pathlib.Path, base: str) -> None:
    prepared = prepare("breakhis", str(root), magnification="40X", directory=base)
    found = {image.name.image_id: image for image in breakhis_scan.scan(root, "40X").images}
    assert len(found) == len(prepared.records)
    for record in prepared.records:
        name = found[record.image_id].name
        assert (record.label, record.subtype, record.magnification) == (name.label, name.subtype, "40X")
        assert (record.patient_id, record.case_id) == (name.patient_id, name.case_id)
        assert record.pixel_hash == found[record.image_id].pixel_hash
    assert set(prepared.records.column("label")) == {"benign", "malignant"}


def test_added_file_is_prepared_again(root: pathlib.Path, base: str, write_images: WriteImages) -> None:
    first = prepare("breakhis", str(root), magnification="100X", directory=base)
    write_images(root, ["SOB_B_F-14-9133-100-001.png"], seed=1)
    second = prepare("breakhis", str(root), magnification="100X", directory=base)
    assert second.directory != first.directory
    assert len(second.records) == len(first.records) + 1
    _assert_stored(second, root)


def test_replaced_file_is_prepared_again(root: pathlib.Path, base: str, write_images: WriteImages) -> None:
    first = prepare("breakhis", str(root), magnification="40X", directory=base)
    write_images(root, TREE[:1], seed=1)
    second = prepare("breakhis", str(root), magnification="40X", directory=base)
    assert second.directory != first.directory
    _assert_stored(second, root)


def test_all_magnifications_and_one_are_stored_separately(root: pathlib.Path, base: str) -> None:
    every = prepare("breakhis", str(root), magnification="all", directory=base)
    assert sorted(every.records.column("image_id")) == sorted(name[:-4] for name in NAMES)
    _assert_stored(every, root)
    one = prepare("breakhis", str(root), magnification="40X", directory=base)
    assert set(one.records.column("magnification")) == {"40X"}
    assert one.directory != every.directory
    assert one.summary["patients"] == every.summary["patients"]


def test_bad_image_policies_are_stored_separately(root: pathlib.Path, base: str) -> None:
    (root / TREE[0]).write_bytes(b"")
    skipping = prepare("breakhis", str(root), magnification="40X", on_bad_image="skip", directory=base)
    assert len(skipping.records) == 5
    assert skipping.summary["bad_images"] == {TREE[0]: "empty file"}
    with pytest.raises(DataError, match="1 bad image"):
        prepare("breakhis", str(root), magnification="40X", directory=base)


def test_deleted_table_is_rebuilt(root: pathlib.Path, base: str) -> None:
    first = prepare("breakhis", str(root), magnification="100X", directory=base)
    table = first.directory / "records.csv"
    content = table.read_bytes()
    table.unlink()
    second = prepare("breakhis", str(root), magnification="100X", directory=base)
    assert list(second.records) == list(first.records)
    assert table.read_bytes() == content


@pytest.mark.parametrize("content", ["image_id,label\n", "", None])
def test_damaged_or_older_table_is_rebuilt(root: pathlib.Path, base: str, content: str | None) -> None:
    first = prepare("breakhis", str(root), magnification="100X", directory=base)
    table = first.directory / "records.csv"
    good = table.read_text()
    table.write_text(good[:-30] if content is None else content)
    assert list(prepare("breakhis", str(root), magnification="100X", directory=base).records) == list(first.records)
    assert table.read_text() == good


def test_archive_gives_the_same_data_as_its_tree(root: pathlib.Path, base: str, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "BreaKHis_v1.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        tar.add(root / "BreaKHis_v1", "BreaKHis_v1")
    packed = prepare("breakhis", str(path), magnification="100X", directory=base)
    plain = prepare("breakhis", str(root), magnification="100X", directory=base)
    assert list(packed.records) == list(plain.records)
    _assert_stored(packed, root)
    assert packed.description == f"BreakHis images of {path}, 100X"
    for fact in ("patients", "published", "notes", "bad_images"):
        assert packed.summary[fact] == plain.summary[fact]
    before = _times(pathlib.Path(base))
    prepare("breakhis", str(path), magnification="100X", directory=base)
    assert _times(pathlib.Path(base)) == before  # not extracted again


def test_without_a_root_images_are_synthetic_and_labelled_so(base: str, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = module.generator.SyntheticSpec
    # The smallest set that the generator allows; its content is tested elsewhere.
    monkeypatch.setattr(
        module.generator,
        "SyntheticSpec",
        lambda magnifications: spec(
            cases_per_subtype=(1,) * 8, images_per_patient=1, magnifications=magnifications, height=32, width=32
        ),
    )
    prepared = prepare("breakhis", "", magnification="100X", directory=base)
    assert prepared.synthetic
    assert prepared.description.startswith("SYNTHETIC H&E-like images (computer-made, no diagnosis)")
    assert set(prepared.records.column("magnification")) == {"100X"}
    root = next(pathlib.Path(base).glob("synthetic-*"))
    _assert_stored(prepared, root)
    # The same folder given as a root is still marked synthetic.
    assert prepare("breakhis", str(root), magnification="100X", directory=base).synthetic


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"pipeline": "camelyon"}, "data.pipeline='camelyon' is not one of breakhis"),
        ({"magnification": "100x"}, "data.magnification='100x' is not one of 40X, 100X, 200X, 400X, all"),
        ({"magnification": ""}, "data.magnification='' is not one of"),
        ({"on_bad_image": "ignore"}, "data.on_bad_image='ignore' is neither 'error' nor 'skip'"),
        ({"root": "/no/such/place"}, r"/no/such/place: no such file or folder \(data.root\)"),
    ],
)
def test_invalid_settings_are_refused_before_anything_is_written(
    wrong: dict[str, str], message: str, root: pathlib.Path, base: str
) -> None:
    settings = {"pipeline": "breakhis", "root": str(root), "magnification": "100X", "directory": base} | wrong
    with pytest.raises(DataError, match=message):
        prepare(**settings)
    assert not pathlib.Path(base).exists()


def test_empty_root_is_refused_with_our_message(base: str, tmp_path: pathlib.Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no PNG images below this folder"):
        prepare("breakhis", str(tmp_path / "empty"), magnification="100X", directory=base)


def test_archive_without_images_is_refused_with_our_message(base: str, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "a.tar.gz"
    (tmp_path / "readme.txt").write_text("hello")
    with tarfile.open(path, "w:gz") as tar:
        tar.add(tmp_path / "readme.txt", "readme.txt")
    with pytest.raises(DataError, match="no PNG images below this folder"):
        prepare("breakhis", str(path), magnification="100X", directory=base)


def test_tfds_does_not_change_error_messages(root: pathlib.Path, base: str) -> None:
    with pytest.raises(DataError) as caught:
        prepare("breakhis", str(root), magnification="400X", directory=base)
    # TFDS puts "Failed to construct dataset ..." before the message of an error that it passes on.
    assert str(caught.value) == f"{root}: no image of magnification 400X (found 40X: 6, 100X: 6)"


def test_failure_leaves_nothing_usable_and_can_be_repeated(root: pathlib.Path, base: str) -> None:
    good = (root / TREE[2]).read_bytes()
    (root / TREE[2]).write_bytes(good[:50])
    for _ in range(2):  # the second call must not mistake the first one's leftovers for a dataset
        with pytest.raises(DataError, match=f"1 bad image:\n  {TREE[2]}: truncated PNG"):
            prepare("breakhis", str(root), magnification="100X", directory=base)
    assert not list(pathlib.Path(base).rglob("*array_record*"))
    (root / TREE[2]).write_bytes(good)
    _assert_stored(prepare("breakhis", str(root), magnification="100X", directory=base), root)


def test_image_that_disappears_while_images_are_stored(
    root: pathlib.Path, base: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # It disappears between the scan and the copy, as on a network drive, when other images are already written.
    from data_pipelines.breakhis import breakhis_dataset_builder as builder

    def scan_then_lose_one(*args: str) -> breakhis_scan.Scan:
        found = breakhis_scan.scan(*args)  # type: ignore[arg-type]
        found.images[-1].path.rename(root / "away")
        return found

    lost = root / next(name for name in TREE if name.endswith("190EF-100-002.png"))
    with monkeypatch.context() as patch:
        patch.setattr(builder, "scan", scan_then_lose_one)
        with pytest.raises(FileNotFoundError, match=r"190EF-100-002\.png"):
            prepare("breakhis", str(root), magnification="100X", directory=base)
    assert not list(pathlib.Path(base).rglob("dataset_info.json"))
    (root / "away").rename(lost)
    _assert_stored(prepare("breakhis", str(root), magnification="100X", directory=base), root)


def test_default_directory_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> None:
    monkeypatch.setenv("HISTOJAX_DATA", str(tmp_path))
    assert module.default_directory() == tmp_path
    monkeypatch.setenv("HISTOJAX_DATA", "~/data")
    assert module.default_directory() == pathlib.Path.home() / "data"
    monkeypatch.delenv("HISTOJAX_DATA")
    assert module.default_directory() == pathlib.Path.home() / ".cache" / "histojax"


def test_neither_tensorflow_nor_torch_is_imported(root: pathlib.Path, base: str) -> None:
    program = f"""
import json, sys
from data_pipelines.prepare import open_images, prepare
light = [name for name in ("tensorflow_datasets", "jax") if name in sys.modules]
for _ in range(2):
    prepared = prepare("breakhis", {str(root)!r}, magnification="100X", directory={base!r})
    image = open_images(prepared.directory)[0]["image"]
heavy = [name for name in ("tensorflow", "torch", "keras") if name in sys.modules]
print(json.dumps([light, heavy, len(prepared.records), image[1:4].decode()]))
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    light, heavy, images, magic = json.loads(run.stdout.splitlines()[-1])
    assert (light, heavy) == ([], [])
    assert (images, magic) == (6, "PNG")


def test_datasets_above_the_tfds_shuffle_buffer_need_no_tensorflow(
    root: pathlib.Path, base: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tensorflow_datasets.core.shuffle.MAX_MEM_BUFFER_SIZE", 1)  # bytes; the default is 1 GB
    _assert_stored(prepare("breakhis", str(root), magnification="all", directory=base), root)


def test_no_temporary_files_are_left(
    root: pathlib.Path, base: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    prepare("breakhis", str(root), magnification="40X", directory=base)
    few = functools.partial(module.tiles_generator.generate_tiles, spec=FEW_TILES)
    monkeypatch.setattr(module.tiles_generator, "generate_tiles", few)
    prepare("liver_tiles", "", magnification="", directory=base)
    assert list((tmp_path / "temporary").iterdir()) == []


def test_the_order_does_not_depend_on_the_number_of_files(
    root: pathlib.Path, base: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_one = prepare("breakhis", str(root), magnification="all", directory=base)
    monkeypatch.setattr(tfds_builder, "_IMAGES_PER_SHARD", 5)
    in_many = prepare("breakhis", str(root), magnification="all", directory=base + "-many")
    _assert_stored(in_many, root)
    assert list(in_many.records) == list(in_one.records)
    files = sorted(path.name for path in in_many.directory.glob("*array_record*"))
    assert len(files) == 3
    assert files[-1].endswith("-00002-of-00003")
    names = list(in_many.records.column("image_id"))
    assert sorted(names) != names  # shuffled: images of a patient are not adjacent


def test_real_images_are_prepared(breakhis_part: pathlib.Path, base: str) -> None:
    prepared = prepare("breakhis", str(breakhis_part), magnification="100X", directory=base)
    assert len(prepared.records) == 140
    _assert_stored(prepared, breakhis_part)
    assert len(set(prepared.records.column("pixel_hash"))) > 1
    assert prepared.summary["bad_images"] == {}


@pytest.mark.parametrize("pipeline", ["breakhis", "liver_tiles"])
def test_concurrent_processes_prepare_once(base: str, tmp_path: pathlib.Path, pipeline: str) -> None:
    magnification, root = "100X" if pipeline == "breakhis" else "", tmp_path / "root"
    if pipeline == "breakhis":
        generate(root, SyntheticSpec(cases_per_subtype=(1,) * 8, images_per_patient=1, magnifications=("100X",)))
    else:
        generate_tiles(root, FEW_TILES)
    images = sum(len(list(root.rglob(pattern))) for pattern in ("*.png", "*.jpg"))
    (tmp_path / "base").mkdir()
    code = "import logging, sys\nfrom data_pipelines.prepare import prepare\nlogging.basicConfig(level=logging.INFO)\n"
    code += "prepared = prepare(sys.argv[1], sys.argv[2], magnification=sys.argv[3], directory=sys.argv[4])\n"
    code += "print(len(prepared.records), 'images')"
    logs = [tmp_path / "0.log", tmp_path / "1.log"]
    with open(pathlib.Path(base) / ".lock", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # held until both processes wait for it
        processes = []
        for log in logs:
            with open(log, "w") as file:
                command = [sys.executable, "-c", code, pipeline, str(root), magnification, base]
                processes.append(subprocess.Popen(command, stdout=file, stderr=file))
        deadline = time.monotonic() + 60
        while not all("waiting for another process" in log.read_text() for log in logs):
            assert time.monotonic() < deadline
            time.sleep(0.05)
    assert [process.wait(120) for process in processes] == [0, 0], [log.read_text() for log in logs]
    assert all(log.read_text().endswith(f"{images} images\n") for log in logs)
    assert sum(log.read_text().count(f"preparing {pipeline} from") for log in logs) == 1

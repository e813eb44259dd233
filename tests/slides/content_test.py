"""A slide's content hash: independent of its name, changed by any of the bytes that identify it."""

import pathlib

import pytest

from histojax.slides import content


def test_the_name_does_not_matter_but_each_byte_and_the_size_do(tmp_path: pathlib.Path) -> None:
    texts = {"a.svs": b"slide", "b.tif": b"slide", "c.svs": b"slidE", "d.svs": b"slide\0"}
    for name, text in texts.items():
        (tmp_path / name).write_bytes(text)
    a, b, c, d = (content.content_hash(tmp_path / name) for name in texts)
    assert a == b
    assert len({a, c, d}) == 3


def test_a_large_file_is_sampled_from_its_first_to_its_last_byte(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(content, "_WHOLE_BYTES", 1000)
    monkeypatch.setattr(content, "_BLOCK_BYTES", 10)
    path = tmp_path / "a.svs"
    hashes = set()
    for changed in (None, 0, 9, 66, 2000 - 10, 1999):  # blocks begin at 0, 132, 265, …, 1990
        data = bytearray(2000)
        if changed is not None:
            data[changed] = 1
        path.write_bytes(data)
        hashes.add(content.content_hash(path))
    assert len(hashes) == 5, "all but the byte between two blocks"


def test_the_folder_of_an_mrxs_slide_counts(tmp_path: pathlib.Path) -> None:
    slide, folder = tmp_path / "a.mrxs", tmp_path / "a"
    folder.mkdir()
    slide.write_bytes(b"thumbnail")
    assert content.content_hash(slide) is None, "without its folder it is no slide"
    hashes = set()
    for index, data in ((b"SLIDE_ID = 1", b"tiles"), (b"SLIDE_ID = 2", b"tiles"), (b"SLIDE_ID = 2", b"more tiles")):
        (folder / "Slidedat.ini").write_bytes(index)
        (folder / "Data0000.dat").write_bytes(data)
        hashes.add(content.content_hash(slide))
    assert len(hashes) == 3


def test_a_file_without_content_has_no_hash(tmp_path: pathlib.Path) -> None:
    (tmp_path / "empty.svs").touch()
    for path in (tmp_path / "empty.svs", tmp_path / "absent.svs", tmp_path):
        assert content.content_hash(path) is None

"""I24: stores that engines of every format version wrote are read as they were written. golden.py makes them."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import golden
import pytest
import reader

from dora_state import Store

# Those in which nothing expires; of the others test_golden_expiring.py.
ARCHIVES = sorted(golden.FOLDER.glob("version-*-[!e]*.tar.xz"))


@pytest.fixture(params=ARCHIVES, ids=lambda path: path.name.split(".")[0])
def unpacked(request, tmp_path: Path) -> tuple[Path, list, bool]:
    """The store, what must be in it, and whether it was closed."""
    path = tmp_path / "store"
    path.mkdir(mode=0o700)
    with tarfile.open(request.param) as archive:
        archive.extractall(path, filter="data")
    expected = json.loads((path / "content.json").read_text())
    (path / "content.json").unlink()
    return path, expected, "closed" in request.param.name


def test_i24_there_are_golden_files_of_every_version():
    made = {path.name.split(".")[0] for path in golden.FOLDER.iterdir()}
    versions = range(1, golden.present_version() + 1)
    assert made == {f"version-{v}-{how}" for v in versions for how in golden.KINDS}


def test_i24_a_golden_store_is_read_without_a_change(unpacked):
    path, expected, closed = unpacked
    before = {file.name: file.read_bytes() for file in path.iterdir()}
    with Store(str(path), read_only=True) as store:
        assert golden.content(store) == expected
        assert (store.stats()["dropped_bytes"] == 0) == closed
    assert {file.name: file.read_bytes() for file in path.iterdir()} == before


def test_i24_a_golden_store_goes_on(unpacked):
    path, expected, _ = unpacked
    with Store(str(path)) as store:
        assert golden.content(store) == expected
        store.verify()
        store.put("late/3", b"again")
        store.compact()
    with Store(str(path)) as store:
        assert store["late/3"] == b"again"
        del store["late/3"]
        now = golden.content(store)
        store.verify()
    assert [{k: v[1:] for k, v in space.items()} for space in now] == [
        {k: v[1:] for k, v in space.items()} for space in expected
    ]


def test_i24_the_second_reader_agrees(unpacked):
    path, expected, _ = unpacked
    state = reader.read_log(path).state
    for space, wanted in zip(state, expected, strict=True):
        assert {key.decode(): entry.sequence for key, entry in space.items()} == {
            key: sequence for key, (sequence, _, _) in wanted.items()
        }

"""examples/tracker: a numpy filter that is killed ends with the very bits of one that is not."""

from __future__ import annotations

import importlib
import re
import shutil
import sys
from pathlib import Path

import dataflows
import pytest

from dora_state import Store, typed_state

pytest.importorskip("numpy")

EXAMPLE = Path(__file__).parents[2] / "examples" / "tracker"
VERDICT = re.compile(
    r"measurements (\d+), kills (\d+), lost (\d+), twice (\d+), different (\d+): (.*)"
)


@pytest.fixture
def example(flow) -> Path:
    ignored = shutil.ignore_patterns("out", "state", "__pycache__")
    return shutil.copytree(EXAMPLE, flow / "tracker", ignore=ignored)


def run(example: Path, *, seconds: float = 2, kills: int = 3) -> tuple[int, list[int], str]:
    """The exit code, the five counts of the sink, and its verdict."""
    result = dataflows.run(
        example, TRACKER_SECONDS=str(seconds), TRACKER_KILLS=str(kills), TRACKER_SEED="7"
    )
    verdicts = [match for line in result.said("sink") if (match := VERDICT.fullmatch(line))]
    assert len(verdicts) == 1, result.log
    *counts, verdict = verdicts[0].groups()
    return result.code, [int(count) for count in counts], verdict


def change(example: Path, before: str, after: str, file: str) -> None:
    source = (example / file).read_text()
    assert source.count(before) == 1
    (example / file).write_text(source.replace(before, after))


def unkilled(example: Path, monkeypatch, seconds: float):
    """The operator after the same measurements, in this process."""
    monkeypatch.setenv("TRACKER_SECONDS", str(seconds))
    monkeypatch.setenv("TRACKER_SEED", "7")
    monkeypatch.syspath_prepend(str(example))
    for name in ("kalman", "world", "tracker"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    world, tracker = importlib.import_module("world"), importlib.import_module("tracker")
    operator = tracker.Operator()
    for _, target, *measured in world.measurements():
        operator.track(target, tracker.np.array(measured))
    for name in ("kalman", "world", "tracker"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return operator


def test_every_track_and_the_state_on_disk_are_bit_identical(example, monkeypatch):
    code, counts, verdict = run(example, seconds=5, kills=12)
    assert (counts, verdict) == ([500, 12, 0, 0, 0], "every track is bit-identical")
    assert code == 0
    with Store(example / "state" / "tracker", read_only=True) as store:
        saved, version = typed_state.unpack(dict(store.items()))
    operator = unkilled(example, monkeypatch, 5)
    assert (version, saved["measurements"], operator.measurements) == (1, 500, 500)
    for name in ("means", "covariances"):
        right = getattr(operator, name)
        assert list(saved[name]) == list(right) == [0, 1, 2]
        for target, array in right.items():
            assert saved[name][target].tobytes() == array.tobytes()


def test_a_field_that_is_not_declared_is_found(example):
    change(example, "= state({}, keyed=True)  # (4, 4)", "= {}", "tracker.py")
    change(
        example,
        "        if target in self.means:",
        "        if target in self.means and target in self.covariances:",
        "tracker.py",
    )
    code, (measurements, kills, lost, twice, different), _ = run(example)
    assert (measurements, kills, lost, twice) == (200, 3, 0, 0)
    assert different > 0
    assert code != 0


def test_a_last_bit_is_found(example):
    change(
        example,
        "        return np.concatenate",
        "        if self.measurements == 100 and is_killed():\n"
        "            self.means[target][0] = np.nextafter(self.means[target][0], 9)\n"
        "        return np.concatenate",
        "tracker.py",
    )
    change(
        example,
        "class Operator:",
        "import os\n\n\ndef is_killed():\n"
        '    return os.environ.get("DORA_STATE_SHARED") is not None\n\n\nclass Operator:',
        "tracker.py",
    )
    code, counts, _ = run(example, kills=1)
    assert counts[:4] == [200, 1, 0, 0]
    assert counts[4] > 0
    assert code != 0

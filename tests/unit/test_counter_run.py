"""examples/counter/run.py believes neither dora's exit code nor the sink's line alone."""

from __future__ import annotations

import importlib.util
import os
import shlex
from pathlib import Path

import pytest

FILE = Path(__file__).parents[2] / "examples" / "counter" / "run.py"
spec = importlib.util.spec_from_file_location("counter_run", FILE)
assert spec
assert spec.loader
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)

GOOD = "events 9, crashes 2, lost 0, twice 0, restart p50 1.0 ms p99 2.0 ms"
BAD = GOOD.replace("lost 0", "lost 1")


@pytest.fixture
def run(tmp_path):
    """Runs the example with a script in place of dora that prints lines and exits."""

    def run(*lines: str, code: int = 0, script: str = "") -> int:
        dora = tmp_path / "dora"
        printed = "".join(f"echo {shlex.quote(line)}\n" for line in lines)
        dora.write_text(f"#!/bin/sh\n{printed}{script}\nexit {code}\n")
        dora.chmod(0o755)
        return module.run(str(dora), dict(os.environ), patience_s=5)

    return run


def test_an_exact_run_succeeds_and_ends_with_the_line_of_the_ledger(run, capfd):
    assert run("10:00:00 stdout killer: hello", f"10:00:01 stdout sink: {GOOD}", "some noise") == 0
    assert capfd.readouterr().out == f"killer: hello\n{GOOD}\n"


@pytest.mark.parametrize(
    ("lines", "code"),
    [
        ([], 0),
        ([f"10:00:00 stdout sink: {GOOD}"], 1),
        ([f"10:00:00 stdout sink: {BAD}"], 1),
        ([f"10:00:00 stdout sink: {BAD}"], 0),
        ([f"10:00:00 stdout sink: {GOOD}", f"10:00:00 stdout sink: {GOOD}"], 0),
    ],
)
def test_anything_else_fails_and_shows_the_whole_log(run, capfd, lines, code):
    assert run(*lines, "some noise", code=code) == 1
    assert "some noise" in capfd.readouterr().out


def test_a_run_that_hangs_is_killed_and_fails(tmp_path, capfd, monkeypatch):
    dora = tmp_path / "dora"
    dora.write_text(f"#!/bin/sh\necho '10:00:00 stdout sink: {GOOD}'\nexec sleep 60\n")
    dora.chmod(0o755)
    assert module.run(str(dora), dict(os.environ), patience_s=0.2) == 1

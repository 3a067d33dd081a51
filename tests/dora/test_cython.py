"""examples/cython-operator: built as its README says, against the installed wheel, and run in a real dataflow."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import dataflows

EXAMPLE = Path(__file__).parents[2] / "examples" / "cython-operator"


def test_an_operator_in_cython_is_killed_and_comes_back(tmp_path, flow):
    source, target = tmp_path / "source", tmp_path / "target"
    shutil.copytree(EXAMPLE, source)
    shutil.copytree(EXAMPLE, flow, dirs_exist_ok=True)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-build-isolation"]
    subprocess.run([*pip, "--no-deps", "--no-index", "--target", target, source], check=True)
    result = dataflows.run(flow, STEPS="200", KILLS="3", PYTHONPATH=str(target))
    assert result.said("sink") == ["steps 200, kills 3, lost 0, twice 0"], result.log
    assert result.code == 0, result.log

"""_core.pyi says what the compiled module is. mypy's stubtest compares them, on the installed package."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

# What Cython adds to every module and class, and an __init__ without a signature of its own.
ALLOWED = r"""
dora_state\._core\.__pyx_capi__
dora_state\._core\.__test__
dora_state\._core\.__(reduce|setstate)_cython__
dora_state\._core\.Lifeline\.__init__
"""


def test_the_stub_is_as_the_module(tmp_path):
    allowed = tmp_path / "allowed"
    allowed.write_text(ALLOWED)
    options = ["--ignore-positional-only", "--ignore-disjoint-bases", "--ignore-unused-allowlist"]
    done = subprocess.run(
        [
            *(sys.executable, "-m", "mypy.stubtest", "dora_state._core", *options),
            *("--allowlist", allowed, "--mypy-config-file", "pyproject.toml"),
        ],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr

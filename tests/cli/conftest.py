from __future__ import annotations

import os
import subprocess

import pytest
from program import PROGRAM, Said, word

from dora_state import Store, location


@pytest.fixture
def folder(tmp_path):
    """The folder of a dataflow, where commands are run."""
    folder = tmp_path / "flow"
    folder.mkdir()
    return folder


@pytest.fixture
def command(folder):
    """Runs `dora-state` as a process of its own."""

    def run(*arguments: object, input: bytes = b"", **options) -> Said:
        done = subprocess.run(
            [str(PROGRAM), *map(word, arguments)],
            input=input,
            capture_output=True,
            timeout=100,
            check=False,
            **{"cwd": folder, **options},
        )
        return Said(done.returncode, done.stdout, done.stderr.decode())

    return run


@pytest.fixture
def call(folder, monkeypatch, capfdbinary):
    """The same within this process, which is quicker. Its standard output is no terminal."""
    from dora_state.cli import main

    monkeypatch.chdir(folder)

    def run(*arguments: object) -> Said:
        code = main([os.fsdecode(word(each)) for each in arguments])
        out, error = capfdbinary.readouterr()
        return Said(code, out, error.decode())

    return run


@pytest.fixture
def state(folder):
    """A state directory with a shared store and that of an operator, as a run that was killed leaves it."""
    root = folder / "state"
    location.prepare(root)
    with Store(root / "shared") as shared:
        shared.update({"map/origin": b"\x01\x02", "map/name": b"hall", "mode": b"drive"})
    with Store(root / location.escape("arm/left")) as private:
        private["pose"] = b"\x00" * 16
    (root / f"{location.escape('arm/left')}.lock").write_text(
        '{"ended": "no", "dataflow_id": "d1", "node_id": "arm/left", "pid": 1}'
    )
    return root

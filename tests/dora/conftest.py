from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def runtime_directory(tmp_path, monkeypatch):
    """Records of runs go into a directory of the test."""
    directory = tmp_path / "run"
    directory.mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(directory))
    monkeypatch.delenv("DORA_STATE_DIR", raising=False)
    return directory


@pytest.fixture
def flow(tmp_path):
    """An empty folder for a dataflow."""
    folder = tmp_path / "flow"
    folder.mkdir()
    return folder

from __future__ import annotations

import pytest


@pytest.fixture
def flow(tmp_path):
    """An empty folder for a dataflow."""
    folder = tmp_path / "flow"
    folder.mkdir()
    return folder

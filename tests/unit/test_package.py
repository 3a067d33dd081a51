"""What the sdist and the wheel contain. tests/run.py builds them and says where they are."""

from __future__ import annotations

import os
import subprocess
import tarfile
import zipfile
from pathlib import Path, PurePosixPath

import pytest

import dora_state

REPOSITORY = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(
    "DORA_STATE_DISTRIBUTIONS" not in os.environ, reason="tests/run.py builds the distributions"
)


def distribution(pattern: str) -> Path:
    (found,) = Path(os.environ["DORA_STATE_DISTRIBUTIONS"]).glob(pattern)
    return found


def test_the_tests_run_against_the_installed_wheel():
    folder = Path(dora_state.__file__).parent
    assert folder.parent.name == "site-packages"
    assert REPOSITORY / "src" not in folder.parents


def test_the_sdist_has_the_sources_and_nothing_else():
    with tarfile.open(distribution("*.tar.gz")) as archive:
        names = {PurePosixPath(*PurePosixPath(name).parts[1:]) for name in archive.getnames()}
    files = {str(name) for name in names if name.parts} - {"PKG-INFO"}
    for part in ("csrc", "src/dora_state", "tests", "examples", "docs"):
        assert any(name.startswith(f"{part}/") for name in files), part
    for name in ("LICENSE", "README.md", "CMakeLists.txt", "pyproject.toml"):
        assert name in files
    tracked = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    if tracked.returncode == 0:
        assert files - set(tracked.stdout.splitlines()) == set()


def test_the_wheel_has_what_is_used_and_nothing_else():
    with zipfile.ZipFile(distribution("*.whl")) as archive:
        names = [PurePosixPath(name) for name in archive.namelist()]
    inside = {name for name in names if name.parts[0] == "dora_state"}
    assert all(name.parts[0] == "dora_state" or ".dist-info" in name.parts[0] for name in names)
    assert {name.suffix for name in inside} == {".py", ".pyi", ".pxd", ".so", ".typed", ".h"}
    assert PurePosixPath("dora_state/py.typed") in inside
    assert PurePosixPath("dora_state/include/dora_state.h") in inside
    sources = {
        path.relative_to(REPOSITORY / "src").as_posix()
        for path in (REPOSITORY / "src").rglob("*.py")
        if "__pycache__" not in path.parts
    }
    assert {str(name) for name in inside if name.suffix == ".py"} == sources


def test_the_engine_stays_inside_of_the_module():
    """Only the module's own entry is visible: another copy of the engine in the process cannot be mixed up with it."""
    (module,) = Path(dora_state.__file__).parent.glob("_core.*.so")
    symbols = subprocess.run(
        ["nm", "--dynamic", "--defined-only", module], capture_output=True, text=True, check=True
    )
    names = {line.split()[-1] for line in symbols.stdout.splitlines()}
    assert names - {"_init", "_fini"} == {"PyInit__core"}

"""The virtual environment of the repository, made when it is needed. Only the standard library is used here."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import venv
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
FOLDER = REPOSITORY / ".venv-run"
_MARK = FOLDER / "installed"
OLDEST_PYTHON = (3, 11)  # dora 1.1 needs it; the store alone works from 3.10 on


def program(name: str) -> str:
    """The path of a program of the environment."""
    return str(FOLDER / "bin" / name)


def variables() -> dict[str, str]:
    """The process environment in which the virtual environment is active."""
    return {
        **{name: value for name, value in os.environ.items() if name != "PYTHONHOME"},
        "VIRTUAL_ENV": str(FOLDER),
        "PATH": f"{FOLDER / 'bin'}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        # dora asks `uv run which` for the program of a node. In a folder of a project, like this one, that would first
        # resolve and install the project.
        "UV_NO_PROJECT": "1",
        "UV_NO_SYNC": "1",
    }


def create() -> None:
    """Makes the environment if it is not there, or not of this Python."""
    if sys.version_info < OLDEST_PYTHON:
        oldest = ".".join(map(str, OLDEST_PYTHON))
        sys.exit(f"error: this is Python {sys.version.split()[0]}\nhint: use {oldest} or newer")
    mark = FOLDER / "made-by"
    maker = f"{sys.version}\n{REPOSITORY}\n"
    if not mark.exists() or mark.read_text() != maker:
        venv.create(FOLDER, clear=True, symlinks=True, with_pip=True)
        mark.write_text(maker)


def install(*requirements: str) -> None:
    """Installs with pip, quietly; a failure ends the program with pip's own message."""
    pip = [program("python"), "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    subprocess.run([*pip, *requirements], check=True, env=variables(), cwd=REPOSITORY)


def install_package(*extras: str) -> None:
    """Builds and installs the package from the sources, unless these very sources are installed already."""
    sources = _fingerprint()
    installed, _, with_extras = (_MARK.read_text() if _MARK.exists() else "").partition(" ")
    if installed != sources or not set(extras) <= set(with_extras.split()):
        print(
            f"installing dora-state from its sources into {FOLDER.name}, about a minute", flush=True
        )
        _install(".", extras, sources)


def install_wheel(wheel: Path, *extras: str) -> None:
    """Installs a wheel that was just built from the sources."""
    _install(str(wheel), extras, _fingerprint())


def _install(what: str, extras: tuple[str, ...], sources: str) -> None:
    _MARK.unlink(missing_ok=True)
    # The version stays the same while the sources change, so pip has to be told to install it again.
    install("--force-reinstall", "--no-deps", what)
    install(f"{what}[{','.join(extras)}]")
    _MARK.write_text(f"{sources} {' '.join(extras)}")


def _fingerprint() -> str:
    """Of everything that goes into the package."""
    digest = hashlib.sha256()
    files = [REPOSITORY / "pyproject.toml", REPOSITORY / "CMakeLists.txt"]
    for folder in ("csrc", "src"):
        files += (REPOSITORY / folder).rglob("*")
    for file in sorted(files):
        if file.is_file() and file.suffix != ".pyc":
            digest.update(f"{file.relative_to(REPOSITORY)}\0".encode())
            digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()

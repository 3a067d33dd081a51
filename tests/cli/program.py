"""The program under test, and what can be seen of it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import NamedTuple

PROGRAM = Path(sys.executable).with_name("dora-state")


class Said(NamedTuple):
    code: int
    out: bytes
    error: str

    @property
    def text(self) -> str:
        return self.out.decode()

    @property
    def lines(self) -> list[str]:
        return self.text.splitlines()


def word(argument: object) -> str | bytes:
    return argument if isinstance(argument, (str, bytes)) else str(argument)


def listing(folder: Path) -> dict[str, object]:
    """Everything below a folder: names, contents, sizes and times of change."""
    return {
        str(path.relative_to(folder)): (
            path.lstat().st_mtime_ns,
            path.lstat().st_size,
            path.read_bytes() if path.is_file() else b"",
        )
        for path in sorted(folder.rglob("*"))
    }

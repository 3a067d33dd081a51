"""Where the C headers are: for extension modules that use the engine without Python. See docs/cython.md."""

from __future__ import annotations

from pathlib import Path


def get_include() -> str:
    """The directory of dora_state.h and dora_state_api.h, for the compiler's include path."""
    return str(Path(__file__).parent / "include")

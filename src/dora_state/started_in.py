"""The folder in which this process first imported dora-state.

dora starts a node in the folder of its dataflow, where state lives by default, and the node may leave it before its
first kvs_* call. So this is noted when the package is imported, which imports little else.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

STARTED_IN = Path()
with contextlib.suppress(FileNotFoundError):
    STARTED_IN = Path.cwd()

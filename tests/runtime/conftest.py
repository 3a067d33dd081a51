from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hosting import LEDGER, Hosted
from killable import HostProcess


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Callable[..., Hosted]]:
    """Makes Hosted operators, and ends them whatever the test does."""
    made: list[Hosted] = []

    def make(*args: object, **config: object) -> Hosted:
        made.append(Hosted(tmp_path, *args, **config))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.fixture
def host_process(tmp_path: Path) -> Iterator[Callable[..., HostProcess]]:
    made: list[HostProcess] = []

    def make(source: str = LEDGER, grace_s: float = 5.0) -> HostProcess:
        made.append(HostProcess(tmp_path, source, grace_s))
        return made[-1]

    yield make
    for each in made:
        each.close()

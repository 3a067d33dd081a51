from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hosting import Hosted


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

"""The tour in docs/cli.md is what the command line says today."""

from __future__ import annotations

import tour


def test_the_tour_in_the_document_is_what_is_seen(flow):
    assert tour.masked(tour.walk(flow)) == tour.masked(tour.documented()), (
        "if that is as it should be: python3 tests/dora/tour.py --write"
    )

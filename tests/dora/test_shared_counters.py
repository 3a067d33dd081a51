"""examples/shared-counters: killed nodes and operators count together, and the judge can tell right from wrong."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import dataflows
import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "shared-counters"
VERDICT = re.compile(
    r"kills (\d+), operators: (\d+) events, counted (\d+);"
    r" nodes: acknowledged (\d+), counted (\d+), begun (\d+);"
    r" together: (\d+) and (\d+) to (\d+), counted (\d+)"
)


@pytest.fixture
def example(flow) -> Path:
    return shutil.copytree(
        EXAMPLE, flow / "counters", ignore=shutil.ignore_patterns("out", "state")
    )


def run(example: Path, events: int, kills: int) -> tuple[dataflows.Result, list[int]]:
    result = dataflows.run(example, EVENTS=str(events), KILLS=str(kills), SEED="7")
    (verdict,) = [match for line in result.said("judge") if (match := VERDICT.fullmatch(line))]
    return result, [int(number) for number in verdict.groups()]


def test_operators_count_exactly_and_nodes_within_what_they_know(example):
    result, counts = run(example, events=200, kills=12)
    kills, events, counted, acknowledged, nodes, begun, _, least, most, together = counts
    assert kills == 12
    assert events == counted == 400
    assert 0 < acknowledged <= nodes <= begun
    assert begun - acknowledged <= 8  # no node had more than one under way when it was killed
    assert events + least <= together <= events + most
    assert result.code == 0, result.log


def test_counting_that_is_not_atomic_is_found(example):
    node = example / "node.py"
    source = node.read_text()
    atomic = 'kvs_update("count/nodes", increment, default=b"0")'
    assert source.count(atomic) == 1
    split = 'kvs_write("count/nodes", increment(kvs_read("count/nodes", default=b"0")))'
    node.write_text(source.replace(atomic, split))
    result, counts = run(example, events=50, kills=0)
    acknowledged, nodes = counts[3:5]
    assert nodes < acknowledged
    assert result.code != 0

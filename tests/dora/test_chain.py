"""examples/chain: three operators in a row, all of them killed, and the ledger at the end of all is exact."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import dataflows

VERDICT = re.compile(
    r"events (\d+), crashes (\d+), lost (\d+), twice (\d+), restart p50 (\S+) ms p99 (\S+) ms"
)


def run(flow: Path, change: tuple[str, str] | None = None, seconds: int = 6, kills: int = 24):
    examples = dataflows.EXAMPLE.parent
    for name in ("counter", "chain"):
        left = shutil.ignore_patterns("out", "state", "__pycache__")
        shutil.copytree(examples / name, flow / name, ignore=left)
    if change is not None:
        relay = flow / "chain" / "relay.py"
        assert relay.read_text().count(change[0]) == 1
        relay.write_text(relay.read_text().replace(*change))
    variables = {"COUNTER_SECONDS": str(seconds), "COUNTER_KILLS": str(kills), "COUNTER_SEED": "7"}
    result = dataflows.run(flow / "chain", timeout_s=90, **variables)
    (verdict,) = [m for line in result.said("sink") if (m := VERDICT.fullmatch(line))]
    return result, [int(count) for count in verdict.groups()[:4]]


def test_a_chain_of_operators_that_are_all_killed_is_exact_from_end_to_end(flow):
    result, counts = run(flow)
    assert counts == [600, 24, 0, 0], result.log
    assert result.code == 0, result.log
    for node in ("first", "second"):
        assert not [line for line in result.said(node) if line.startswith("got ")]


def test_an_operator_in_the_middle_that_sends_twice_is_found(flow):
    twice = 'for _ in range(2 if number == 100 else 1): send_output("number"'
    result, (sent, crashes, lost, doubled) = run(
        flow, ('send_output("number"', twice), seconds=2, kills=2
    )
    assert (sent, crashes, lost) == (200, 2, 0)
    assert doubled > 0
    assert result.code != 0

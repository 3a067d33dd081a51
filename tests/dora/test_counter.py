"""examples/counter, as it is and with operators that are wrong: the ledger has to tell one from the other."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import dataflows
import pytest

VERDICT = re.compile(
    r"events (\d+), crashes (\d+), lost (\d+), twice (\d+), restart p50 (\S+) ms p99 (\S+) ms"
)


@pytest.fixture
def example(flow) -> Path:
    return shutil.copytree(
        dataflows.EXAMPLE, flow / "counter", ignore=shutil.ignore_patterns("out", "state")
    )


def run(
    example: Path, *, seconds: float = 3, kills: int = 3
) -> tuple[dataflows.Result, list[int], list[str]]:
    """The result, the four counts of the ledger, and what it complained about."""
    result = dataflows.run(
        example, COUNTER_SECONDS=str(seconds), COUNTER_KILLS=str(kills), COUNTER_SEED="7"
    )
    said = result.said("sink")
    verdicts = [match for line in said if (match := VERDICT.fullmatch(line))]
    assert len(verdicts) == 1, result.log
    complaints = [line for line in said if not VERDICT.fullmatch(line)]
    return result, [int(count) for count in verdicts[0].groups()[:4]], complaints


def change(example: Path, before: str, after: str, file: str = "counter.py") -> None:
    source = (example / file).read_text()
    assert source.count(before) == 1
    (example / file).write_text(source.replace(before, after))


def test_nothing_is_lost_and_nothing_happens_twice(example):
    result, counts, complaints = run(example, seconds=10, kills=20)
    assert counts == [1000, 20, 0, 0], complaints
    assert not complaints
    assert result.code == 0, result.log


def test_an_operator_that_forgets_its_state_is_found(example):
    change(example, 'int.from_bytes(state["total"], "little")', "0")
    result, (sent, crashes, lost, twice), complaints = run(example)
    assert (sent, crashes, twice) == (300, 3, 0)
    assert lost == 3, complaints
    assert result.code != 0


def test_an_operator_that_handles_an_event_twice_is_found(example):
    change(example, "self.total += number", "self.total += number * (2 if number == 100 else 1)")
    result, counts, complaints = run(example)
    assert counts == [300, 3, 0, 1], complaints
    assert complaints == ["at number 100 the total gained 100 too much"]
    assert result.code != 0


def test_an_operator_that_drops_an_output_is_found(example):
    change(example, 'send_output("total"', 'number == 100 or send_output("total"')
    result, counts, complaints = run(example)
    assert counts == [300, 3, 1, 0], complaints
    assert complaints == ["never came out: 100"]
    assert result.code != 0


def test_an_operator_that_sends_an_output_twice_is_found(example):
    change(
        example,
        '            send_output("total"',
        '            for _ in range(2 if number == 100 else 1): send_output("total"',
    )
    result, counts, complaints = run(example)
    assert counts == [300, 3, 0, 1], complaints
    assert complaints == ["number 100 came out again"]
    assert result.code != 0


def test_a_run_without_a_kill_has_shown_nothing(example):
    result, counts, complaints = run(example, kills=0)
    assert counts[1:] == [0, 0, 0]
    assert complaints == ["nobody was killed"]
    assert result.code != 0


def test_a_run_without_an_event_has_shown_nothing(example):
    result, counts, complaints = run(example, seconds=0, kills=0)
    assert counts == [0, 0, 0, 0]
    assert complaints == ["nothing was sent", "nobody was killed"]
    assert result.code != 0

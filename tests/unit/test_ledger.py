"""The ledger of examples/counter must find every way in which an operator can be wrong."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

FILE = Path(__file__).parents[2] / "examples" / "counter" / "ledger.py"
spec = importlib.util.spec_from_file_location("ledger", FILE)
assert spec
assert spec.loader
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
Ledger, percentile, summary = module.Ledger, module.percentile, module.summary


def right(count: int) -> list[tuple[int, int]]:
    return [(number, number * (number + 1) // 2) for number in range(1, count + 1)]


def judge(outputs, sent=100, kills=3, restarts=3):
    ledger = Ledger()
    for output in outputs:
        ledger.take(*output)
    ledger.close(sent, kills=kills, restarts=restarts)
    return ledger


def test_an_exact_run_has_no_problem():
    ledger = judge(right(100))
    assert (ledger.lost, ledger.twice, ledger.problems) == (0, 0, [])


def test_a_lost_output_is_lost():
    ledger = judge([output for output in right(100) if output[0] != 50])
    assert (ledger.lost, ledger.twice) == (1, 0)
    assert ledger.problems == ["never came out: 50"]


@pytest.mark.parametrize("lost", [1, 99, 100])
def test_a_lost_event_is_lost(lost):
    """Neither handled nor sent: at the end only the missing output tells."""
    outputs = [(number, total - lost * (number > lost)) for number, total in right(100)]
    ledger = judge([output for output in outputs if output[0] != lost])
    assert ledger.lost > 0
    assert ledger.twice == 0


def test_forgotten_state_is_lost():
    outputs = [(number, total if number <= 50 else total - 1275) for number, total in right(100)]
    ledger = judge(outputs)
    assert (ledger.lost, ledger.twice) == (1, 0)
    assert ledger.problems == ["at number 51 the total lost 1275"]


def test_an_effect_that_happened_twice_is_twice():
    ledger = judge((number, total + 50 * (number >= 50)) for number, total in right(100))
    assert (ledger.lost, ledger.twice) == (0, 1)


def test_an_output_that_came_twice_is_twice():
    outputs = right(100)
    ledger = judge([*outputs[:50], outputs[49], *outputs[50:]])
    assert (ledger.lost, ledger.twice) == (0, 1)


def test_outputs_out_of_order_are_a_problem():
    outputs = right(100)
    outputs[10], outputs[11] = outputs[11], outputs[10]
    assert judge(outputs).problems == ["number 11 came out after 12"]


def test_state_from_another_run_is_a_problem():
    assert judge((number, total + 7) for number, total in right(100)).twice == 1


def test_a_number_that_was_never_sent_is_a_problem():
    assert judge(right(101)).problems == ["came out but was never sent: 101"]


def test_nothing_sent_is_a_problem():
    assert judge([], sent=0).problems == ["nothing was sent"]


def test_nobody_killed_is_a_problem():
    assert judge(right(100), kills=0, restarts=0).problems == ["nobody was killed"]


@pytest.mark.parametrize("restarts", [2, 4])
def test_a_crash_that_only_one_side_counted_is_a_problem(restarts):
    assert judge(right(100), restarts=restarts).problems == [
        f"3 kills, but the runtime counts {restarts} restarts"
    ]


@given(st.data())
def test_any_single_fault_is_found(data):
    """Drop, repeat or swap outputs, or bend totals: whatever differs from the right sequence is a problem."""
    outputs = right(20)
    fault = data.draw(st.sampled_from(["drop", "repeat", "swap", "bend"]))
    position = data.draw(st.integers(0, 18))
    if fault == "drop":
        del outputs[position]
    elif fault == "repeat":
        outputs.insert(data.draw(st.integers(position + 1, 20)), outputs[position])
    elif fault == "swap":
        outputs[position], outputs[position + 1] = outputs[position + 1], outputs[position]
    else:
        error = data.draw(st.integers(-300, 300).filter(bool))
        length = data.draw(st.integers(1, 20))
        for late in range(position, min(20, position + length)):
            outputs[late] = (outputs[late][0], outputs[late][1] + error)
    assert judge(outputs, sent=20).problems


def test_the_summary_is_one_line():
    assert summary(2000, 0, 0, [1.0, 2.0, 30.04]) == (
        "events 2000, crashes 3, lost 0, twice 0, restart p50 2.0 ms p99 30.0 ms"
    )


def test_percentiles_are_measured_values():
    values = list(range(1, 101))
    assert (percentile(values, 50), percentile(values, 99), percentile([7], 99)) == (50, 99, 7)

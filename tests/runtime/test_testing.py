"""dora_state.testing: what a user writes to see an operator crash."""

from __future__ import annotations

import signal
import textwrap
from pathlib import Path

import pytest
from hosting import wait_gone

from dora_state import testing
from dora_state.errors import OperatorError
from dora_state.runtime.policy import RestartPolicy
from dora_state.testing import run_operator

COUNTER = """
    from dora_state import save_state, state

    class Operator:
        total: int = state(0)
        seen: dict[int, list] = state({}, keyed=True)

        def on_event(self, event, send_output):
            if event["type"] == "INPUT":
                self.total += event["value"]
                self.seen[event["value"]] = [self.total]
                save_state("last", b"%d" % event["value"])
                send_output("total", self.total, {"attempt": event["attempt"]})
            else:
                send_output("saw", event["type"])
            return 0
"""


@pytest.fixture
def counter(tmp_path) -> Path:
    return write(tmp_path, COUNTER)


def write(folder: Path, source: str) -> Path:
    path = folder / "counter.py"
    path.write_text(textwrap.dedent(source))
    return path


def test_the_few_lines_that_a_user_writes(counter, tmp_path):
    with run_operator(counter, tmp_path) as op:
        op.send("number", 1)
        op.kill()
        assert op.state() == {"total": 1, "seen": {1: [1]}, "last": b"1"}
        op.send("number", 2)
        op.kill_at("after-commit")
        op.send("number", 3)
        assert op.outputs("total") == [1, 3, 6]
        assert op.outputs() == [1, 3, 6]
        assert op.outputs("other") == []
        assert op.restarts == 2
        assert op.last_crash["signal"] == 9


MANNERS = [(point, how) for point in testing.EVENT_POINTS for how in ("kill", "exit", "raise")]
MANNERS += [("event", how) for how in ("abort", "segv", "quit")]
MANNERS.remove(("torn-output", "raise"))


@pytest.mark.parametrize(("point", "how"), MANNERS)
def test_at_every_point_of_an_event(counter, tmp_path, point, how):
    """Committed before: not handled again. Not committed: handled again."""
    with run_operator(counter, tmp_path, standby="off") as op:
        op.send("number", 1)
        op.kill_at(point, how)
        (output,) = op.send("number", 2)
        op.send("number", 3)
        assert op.restarts == 1
        assert op.outputs("total") == [1, 3, 6]
        is_over = point in ("after-commit", "after-ack")
        assert output.metadata == {"attempt": 1 if is_over else 2}


@pytest.mark.parametrize("standby", ["fork", "off"])
@pytest.mark.parametrize("point", testing.START_POINTS)
def test_at_every_point_of_a_start(tmp_path, point, standby):
    source = COUNTER.replace(
        "def on_event",
        'def restore_state(self, state):\n            save_state("restored", b"yes")\n\n        def on_event',
    )
    with run_operator(write(tmp_path, source), tmp_path, standby=standby) as op:
        op.send("number", 1)
        op.kill_at(point)
        op.kill()
        assert op.restarts == 2
        op.send("number", 2)
        assert op.outputs("total") == [1, 3]


def test_a_point_that_is_not_reached_fails_the_test(tmp_path):
    operator = write(
        tmp_path,
        """
        class Operator:
            def on_event(self, event, send_output):
                return 0
        """,
    )
    never = pytest.raises(AssertionError, match="never got to the kill point 'after-output'")
    with never, run_operator(operator, tmp_path) as op:
        op.kill_at("after-output")
        op.send("in")
    with run_operator(operator, tmp_path) as op:
        op.kill_at("output")
        with pytest.raises(AssertionError, match="never got to the kill point 'output'"):
            op.kill_at("event")
        op.send("in")
        assert op.restarts == 0


def test_points_and_manners_that_there_are_not_are_refused(counter, tmp_path):
    with run_operator(counter, tmp_path) as op:
        with pytest.raises(ValueError, match="no kill point 'somewhere'; use one of event, output"):
            op.kill_at("somewhere")
        with pytest.raises(ValueError, match="how is 'softly'; use one of kill, abort"):
            op.kill_at("event", "softly")
        with pytest.raises(ValueError, match="torn-output takes no 'raise'"):
            op.kill_at("torn-output", "raise")


def test_an_operator_that_forgets_is_found(tmp_path):
    """What this is for: the same test, with an operator that does not save."""
    forgetful = write(tmp_path, COUNTER.replace("total: int = state(0)", "total = 0"))
    with run_operator(forgetful, tmp_path) as op:
        op.send("number", 1)
        op.kill()
        op.send("number", 2)
        assert op.outputs("total") == [1, 2]
        assert "total" not in op.state()


def test_an_event_that_is_given_up_tells_the_crash(tmp_path):
    source = COUNTER.replace(
        "self.total +=", 'assert event["value"] != 13, "unlucky"\n                self.total +='
    )
    with run_operator(write(tmp_path, source), tmp_path) as op:
        op.send("number", 1)
        with pytest.raises(OperatorError, match=r"dead letter(.|\n)*AssertionError: unlucky"):
            op.send("number", 13)
        op.send("number", 2)
        assert op.outputs("total") == [1, 3]


def test_an_operator_that_does_not_come_back_is_told(tmp_path):
    source = COUNTER.replace(
        "def on_event", "def restore_state(self, state):\n            1 / 0\n\n        def on_event"
    )
    policy = RestartPolicy(max_restarts=1, restart_delay=0.0, exhausted="stop")
    with run_operator(write(tmp_path, source), tmp_path, policy=policy) as op:
        op.send("number", 1)
        with pytest.raises(OperatorError, match=r"does not come back(.|\n)*ZeroDivisionError"):
            op.kill()
        with pytest.raises(OperatorError, match="has ended"):
            op.send("number", 2)


def test_a_second_block_goes_on(counter, tmp_path):
    with run_operator(counter, tmp_path) as op:
        op.send("number", 1)
        pid = op.host.status["worker_pid"]
    assert wait_gone(pid)
    with run_operator(counter, tmp_path) as op:
        op.send("number", 2)
        assert op.outputs("total") == [3]


def test_other_events_and_outputs_outside_of_events(tmp_path):
    source = COUNTER.replace('send_output("saw"', 'send_output("now", 1); send_output("saw"')
    with run_operator(write(tmp_path, source), tmp_path, immediate=["now"]) as op:
        op.send_event({"type": "PARAM_UPDATE", "key": "gain"})
        assert op.outputs("saw") == ["PARAM_UPDATE"]
        assert op.outputs("now") == [1]


def test_an_error_in_the_block_is_the_one_that_is_seen(counter, tmp_path):
    with pytest.raises(ZeroDivisionError), run_operator(counter, tmp_path) as op:
        op.kill_at("event")
        raise ZeroDivisionError


def test_an_operator_without_a_process_cannot_be_killed(tmp_path):
    """Its pid is told as 0, which os.kill() takes for everybody in our process group."""
    path = write(
        tmp_path, "class Operator:\n    def on_event(self, event, send):\n        return 1\n"
    )
    with run_operator(path, tmp_path) as op:
        op.send("number", 1)
        op.host.wait_status(lambda status: status["state"] == "ended", 20)
        with pytest.raises(OperatorError, match="no process: it is ended"):
            op.kill(signal.SIGCONT)

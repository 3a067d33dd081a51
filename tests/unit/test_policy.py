"""The restart decision, by table."""

from __future__ import annotations

import math
import selectors
import socket
from dataclasses import asdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dora_state.runtime.policy import (
    DEAD_LETTERS_IN_A_ROW,
    JITTER,
    LONGEST_S,
    Action,
    Ending,
    History,
    RestartPolicy,
    after_restore,
    decide,
)

CRASH = Ending()
CRASH_AFTER_PROGRESS = Ending(progressed=True)
ASKED = Ending(asked=True)
RESTORE = Ending(restoring=True, has_fallback=True)
LAST_RESTORE = Ending(restoring=True)
RESTART, DEGRADE, STOP = Action.RESTART, Action.DEGRADE, Action.STOP


def decisions(policy: RestartPolicy, endings: list[tuple[float, Ending]]) -> list[tuple]:
    """What is decided after each of a series of (time, ending)."""
    history, made = History(), []
    for now, ending in endings:
        decision, history = decide(policy, history, ending, now)
        asides = {"bury": decision.bury, "roll back": decision.roll_back}
        made.append(
            (decision.action, decision.delay, *(name for name, meant in asides.items() if meant))
        )
    return made


def at(attempt: int, *, progressed: bool = False) -> Ending:
    """A crash in this attempt at an event."""
    return Ending(attempts=attempt, progressed=progressed)


TABLE = {
    "a first crash restarts at once": (
        {},
        [(0, CRASH)],
        [(RESTART, 0)],
    ),
    "later ones wait, doubled each time": (
        {"max_restarts": 0},
        [(n, CRASH) for n in range(5)],
        [(RESTART, 0), (RESTART, 0.1), (RESTART, 0.2), (RESTART, 0.4), (RESTART, 0.8)],
    ),
    "up to a bound": (
        {"max_restarts": 0, "restart_delay": 1, "max_restart_delay": 3},
        [(n, CRASH) for n in range(5)],
        [(RESTART, 0), (RESTART, 1), (RESTART, 2), (RESTART, 3), (RESTART, 3)],
    ),
    "a commit resets charge and delay": (
        {"max_restarts": 1},
        [(0, CRASH), (1, CRASH_AFTER_PROGRESS), (2, CRASH), (3, CRASH_AFTER_PROGRESS), (4, CRASH)],
        [(RESTART, 0)] * 5,
    ),
    "more than max_restarts in the window degrade": (
        {"max_restarts": 2, "restart_delay": 0},
        [(0, CRASH), (1, CRASH), (2, CRASH), (32, CRASH)],
        [(RESTART, 0), (RESTART, 0), (DEGRADE, 30), (DEGRADE, 30)],
    ),
    "the defaults allow five": (
        {},
        [(n, CRASH) for n in range(6)],
        [
            *[(RESTART, 0), (RESTART, 0.1), (RESTART, 0.2), (RESTART, 0.4), (RESTART, 0.8)],
            (DEGRADE, 30),
        ],
    ),
    "or stop, if that is wanted": (
        {"max_restarts": 1, "exhausted": "stop"},
        [(0, CRASH), (1, CRASH)],
        [(RESTART, 0), (STOP, 0)],
    ),
    "charges outside the window are forgotten, the delay is not": (
        {"max_restarts": 1, "restart_window": 10},
        [(0, CRASH), (10, CRASH), (20, CRASH)],
        [(RESTART, 0), (RESTART, 0.1), (RESTART, 0.2)],
    ),
    "a window of 0 forgets nothing": (
        {"max_restarts": 1, "restart_window": 0},
        [(0, CRASH), (1e9, CRASH)],
        [(RESTART, 0), (DEGRADE, 30)],
    ),
    "degraded stays degraded, also when the window has passed": (
        {"max_restarts": 1, "restart_window": 10},
        [(0, CRASH), (1, CRASH), (100, CRASH)],
        [(RESTART, 0), (DEGRADE, 30), (DEGRADE, 30)],
    ),
    "until an event is committed": (
        {"max_restarts": 1},
        [(0, CRASH), (1, CRASH), (31, CRASH_AFTER_PROGRESS), (32, CRASH)],
        [(RESTART, 0), (DEGRADE, 30), (RESTART, 0), (RESTART, 0)],
    ),
    "max_restarts 0 is no limit": (
        {"max_restarts": 0, "restart_delay": 0},
        [(n, CRASH) for n in range(100)],
        [(RESTART, 0)] * 100,
    ),
    "an event is tried three times": (
        {},
        [(0, at(1)), (1, at(2)), (2, at(3)), (3, CRASH)],
        [(RESTART, 0), (RESTART, 0.1), (RESTART, 0, "bury"), (RESTART, 0)],
    ),
    "what its attempts were charged goes with it": (
        {"max_restarts": 3},
        [(n, at(1 + n % 3)) for n in range(6)],
        [(RESTART, 0), (RESTART, 0.1), (RESTART, 0, "bury")] * 2,
    ),
    "three dead letters without a commit between degrade, and no more are made": (
        {"restart_delay": 0},
        [(n, at(1 + n % 3)) for n in range(9)] + [(40, at(1)), (70, at(2)), (100, at(3))],
        [
            *[(RESTART, 0), (RESTART, 0), (RESTART, 0, "bury")] * 2,
            *[(RESTART, 0), (RESTART, 0), (DEGRADE, 30, "bury")],
            *[(DEGRADE, 30)] * 3,
        ],
    ),
    "a commit between forgets the dead letters": (
        {"restart_delay": 0, "max_event_attempts": 1},
        [(n, at(1, progressed=n == 2)) for n in range(5)],
        [
            *[(RESTART, 0, "bury")] * 2,
            *[(RESTART, 0, "bury")] * 2,
            (DEGRADE, 30, "bury"),
        ],
    ),
    "three dead letters stop, if that is wanted": (
        {"max_event_attempts": 1, "exhausted": "stop"},
        [(n, at(1)) for n in range(3)],
        [(RESTART, 0, "bury"), (RESTART, 0, "bury"), (STOP, 0, "bury")],
    ),
    "an operator that the charges have degraded still sets a bad event aside": (
        {"max_restarts": 1},
        [(0, at(1)), (1, at(2)), (31, at(3)), (32, CRASH)],
        [(RESTART, 0), (DEGRADE, 30), (RESTART, 0, "bury"), (RESTART, 0)],
    ),
    "0 attempts are no limit": (
        {"max_event_attempts": 0, "max_restarts": 0, "restart_delay": 0},
        [(n, at(n)) for n in range(1, 50)],
        [(RESTART, 0)] * 49,
    ),
    "a state is tried twice, then the ones before it, with a growing delay": (
        {},
        [(n, RESTORE) for n in range(4)] + [(n, LAST_RESTORE) for n in range(4, 6)],
        [
            *[(RESTART, 0), (RESTART, 0.1, "roll back")],
            *[(RESTART, 0.2), (RESTART, 0.4, "roll back")],
            *[(RESTART, 0.8), (STOP, 0)],
        ],
    ),
    "a state without a snapshot behind it is tried twice, and the operator never starts empty": (
        {},
        [(0, LAST_RESTORE), (1, LAST_RESTORE)],
        [(RESTART, 0), (STOP, 0)],
    ),
    "0 restore attempts never roll back": (
        {"max_restore_attempts": 0, "max_restarts": 2, "restart_delay": 0},
        [(n, RESTORE) for n in range(4)],
        [(RESTART, 0), (RESTART, 0), (DEGRADE, 30), (DEGRADE, 30)],
    ),
    "a degraded operator rolls back, too": (
        {"max_restarts": 1, "restart_delay": 0},
        [(0, CRASH), (1, RESTORE), (31, RESTORE)],
        [(RESTART, 0), (DEGRADE, 30), (RESTART, 0, "roll back")],
    ),
    "never": (
        {"restart_policy": "never"},
        [(0, CRASH_AFTER_PROGRESS)],
        [(STOP, 0)],
    ),
    "on-failure lets an operator end that asked for it": (
        {},
        [(0, ASKED)],
        [(STOP, 0)],
    ),
    "always does not, and does not charge it": (
        {"restart_policy": "always", "max_restarts": 1},
        [(n, ASKED) for n in range(5)],
        [(RESTART, 0)] * 5,
    ),
}


@pytest.mark.parametrize(("options", "endings", "expected"), TABLE.values(), ids=TABLE.keys())
def test_decision(options, endings, expected):
    assert decisions(RestartPolicy(**options), endings) == expected


@given(
    endings=st.lists(
        st.tuples(
            st.floats(0, 1e6),
            st.builds(
                Ending,
                asked=st.booleans(),
                progressed=st.booleans(),
                attempts=st.integers(0, 5),
                restoring=st.booleans(),
                has_fallback=st.booleans(),
            ),
        ),
        max_size=100,
    ),
    max_restarts=st.integers(0, 20),
    window=st.floats(0, 1000),
    exhausted=st.sampled_from(["degraded", "stop"]),
    jitter=st.floats(-1, 1),
)
def test_every_decision_is_bounded(endings, max_restarts, window, exhausted, jitter):
    policy = RestartPolicy(max_restarts=max_restarts, restart_window=window, exhausted=exhausted)
    history, now = History(), 0.0
    for after, ending in endings:
        now += after
        decision, history = decide(policy, history, ending, now, jitter)
        longest = max(policy.max_restart_delay * (1 + JITTER), policy.degraded_retry)
        assert 0 <= decision.delay <= longest
        assert len(history.charges) <= max_restarts + 1
        if ending.progressed and not ending.asked and ending.attempts < policy.max_event_attempts:
            assert (decision.action, decision.delay) == (RESTART, 0)
        assert not (decision.bury and decision.roll_back)
        assert decision.bury <= (ending.attempts >= policy.max_event_attempts)
        assert decision.roll_back <= (ending.restoring and ending.has_fallback)


def test_a_restored_state_has_its_tries_again():
    policy = RestartPolicy()
    _, history = decide(policy, History(), RESTORE, 0.0)
    decision, _ = decide(policy, after_restore(history), RESTORE, 1.0)
    assert not decision.roll_back


def test_the_defaults_are_those_of_the_design():
    """docs/runtime.md has the table."""
    assert asdict(RestartPolicy()) == {
        "restart_policy": "on-failure",
        "max_restarts": 5,
        "restart_delay": 0.1,
        "max_restart_delay": 10.0,
        "restart_window": 60.0,
        "exhausted": "degraded",
        "degraded_retry": 30.0,
        "max_event_attempts": 3,
        "max_restore_attempts": 2,
        "start_deadline": 30.0,
        "restore_deadline": 30.0,
        "event_deadline": 30.0,
        "kill_hung": (),
    }
    assert (DEAD_LETTERS_IN_A_ROW, JITTER) == (3, 0.2)


def test_a_streak_of_any_length_has_a_finite_delay():
    policy = RestartPolicy(max_restarts=0)
    decision, _ = decide(policy, History(streak=10**6), CRASH, 0.0)
    assert decision.delay == policy.max_restart_delay


def test_the_longest_time_can_be_waited_for():
    ours, theirs = socket.socketpair()
    with ours, theirs, selectors.DefaultSelector() as selector:
        selector.register(ours, selectors.EVENT_WRITE)
        assert selector.select(LONGEST_S * (1 + JITTER))


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("restart_policy", "sometimes"),
        ("exhausted", "panic"),
        ("max_restarts", -1),
        ("restart_delay", -0.1),
        ("max_restart_delay", math.nan),
        ("max_restart_delay", math.inf),
        ("restart_delay", 1e10),
        ("restart_window", -1),
        ("degraded_retry", -1),
        ("max_event_attempts", -1),
        ("max_restore_attempts", -1),
        ("event_deadline", -1),
        ("start_deadline", math.inf),
        ("kill_hung", "event"),
        ("kill_hung", ["sleep"]),
    ],
)
def test_a_wrong_option_is_named(option, value):
    with pytest.raises(ValueError, match=f"^{option} is .*; use "):
        RestartPolicy(**{option: value})

"""The restart decision: one pure function of what ended, what was charged before, and the time.

Charged is an incarnation that ends without having committed a new event; any commit clears the
charges and the delay, because progress is health. A first charge restarts at once (most faults are
transient and a spare is ready), the next ones wait restart_delay, doubled each time up to
max_restart_delay. More than max_restarts charges within restart_window exhaust the policy; what
then happens is `exhausted`:

    degraded   the node stays up, its outputs silent; one more try every degraded_retry seconds
    stop       the node ends

Two things can be to blame besides the operator, and both are set aside before it is given up:

    an event   after max_event_attempts it goes to the dead letters, and what it was charged goes with it.
               After DEAD_LETTERS_IN_A_ROW without a commit between it is the operator after all: the
               policy is exhausted, and while it is degraded it gets no further event to bury.
    the state  after max_restore_attempts the snapshot before it is offered, then the one before that;
               when there is none left, the node stops. It never starts empty by itself.
"""

from __future__ import annotations

import enum
from collections.abc import Collection
from dataclasses import dataclass, replace

LONGEST_S = 7 * 24 * 3600.0  # of any time; epoll_wait ends at 24 days, with the jitter
JITTER = 0.2  # +-20 %, so that operators that crash together do not come back together for ever

DEAD_LETTERS_IN_A_ROW = 3

PHASES = ("start", "restore", "event")  # what has a deadline of its own
_POLICIES = ("never", "on-failure", "always")
_EXHAUSTED = ("degraded", "stop")


@dataclass(frozen=True)
class RestartPolicy:
    """When an operator that ended is started again. Names as in dora's dataflow files; times in
    seconds.

    Args:
        restart_policy: "never", "on-failure" (default) or "always". A crash of any kind is a
        failure; returning
            DoraStatus.STOP is not, and restarts only under "always".
        max_restarts: charged restarts within restart_window before the policy is exhausted; 0:
        unlimited.
        restart_delay: wait before the second charged restart; the first is immediate.
        max_restart_delay: upper bound of the doubled delay.
        restart_window: a charge is forgotten after this time; 0: never.
        exhausted: "degraded" (default) or "stop".
        degraded_retry: time between the tries of a degraded operator.
        max_event_attempts: how often an event is tried before it goes to the dead letters; 0: for ever.
        max_restore_attempts: how often a state is tried before the snapshot before it is; 0: for ever.
        start_deadline, restore_deadline, event_deadline: after this time in `__init__`, `restore_state` or
            `on_event` without an output it counts as hung, which is logged; 0: never. A reload has that of a start.
        kill_hung: for which of "start", "restore" and "event" it is then also killed. A reload is interrupted first.
    """

    restart_policy: str = "on-failure"
    max_restarts: int = 5
    restart_delay: float = 0.1
    max_restart_delay: float = 10.0
    restart_window: float = 60.0
    exhausted: str = "degraded"
    degraded_retry: float = 30.0
    max_event_attempts: int = 3
    max_restore_attempts: int = 2
    start_deadline: float = 30.0
    restore_deadline: float = 30.0
    event_deadline: float = 30.0
    kill_hung: Collection[str] = ()

    def __post_init__(self) -> None:
        if self.restart_policy not in _POLICIES:
            raise ValueError(
                f"restart_policy is {self.restart_policy!r}; use one of {', '.join(_POLICIES)}"
            )
        if self.exhausted not in _EXHAUSTED:
            raise ValueError(f"exhausted is {self.exhausted!r}; use one of {', '.join(_EXHAUSTED)}")
        if isinstance(self.kill_hung, str) or not set(self.kill_hung) <= set(PHASES):
            raise ValueError(f"kill_hung is {self.kill_hung!r}; use some of {', '.join(PHASES)}")
        for name in ("max_restarts", "max_event_attempts", "max_restore_attempts"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} is {getattr(self, name)!r}; use 0 or more")
        for name in ("restart_delay", "max_restart_delay", "restart_window", "degraded_retry"):
            check_seconds(name, getattr(self, name))
        for phase in PHASES:
            check_seconds(f"{phase}_deadline", self.deadline(phase))

    def deadline(self, phase: str) -> float:
        """Seconds until a phase counts as hung; 0: never."""
        seconds: float = getattr(self, f"{phase}_deadline")
        return seconds


def check_seconds(name: str, value: float) -> None:
    if not 0 <= value <= LONGEST_S:  # also refuses nan
        raise ValueError(f"{name} is {value!r}; use 0 to {LONGEST_S:.0f} seconds, which is a week")


@dataclass(frozen=True)
class Ending:
    """How an incarnation ended."""

    asked: bool = False  # it returned DoraStatus.STOP or STOP_ALL: not a failure
    progressed: bool = False  # it had committed at least one new event
    attempts: int = 0  # at the event that it was handling, this one included; 0: there was none
    restoring: bool = False  # it was restoring state
    has_fallback: bool = False  # there is a snapshot older than that state


@dataclass(frozen=True)
class History:
    """What is charged to the operator so far."""

    charges: tuple[float, ...] = ()  # when, within the window
    streak: int = 0  # charges since the last progress, within the window or not
    degraded: bool = False
    dead_letters: int = 0  # since the last progress
    restore_failures: int = 0  # of the state that is offered now


class Action(enum.Enum):
    RESTART = "restart"
    DEGRADE = "degrade"  # wait `delay`, then one more try
    STOP = "stop"


@dataclass(frozen=True)
class Decision:
    action: Action
    delay: float = 0.0
    why: str = ""
    bury: bool = False  # the event goes to the dead letters
    roll_back: bool = False  # the next older snapshot is offered


def decide(
    policy: RestartPolicy, history: History, ending: Ending, now: float, jitter: float = 0.0
) -> tuple[Decision, History]:
    """What to do after an incarnation ended, and the history to keep. `jitter` is a random number
    in [-1, 1].
    """
    if ending.asked and policy.restart_policy != "always":
        return Decision(Action.STOP, why="the operator asked to stop"), history
    if policy.restart_policy == "never":
        return Decision(Action.STOP, why="restart_policy is never"), history
    if ending.progressed or ending.asked:
        history = History()
    if policy.max_event_attempts and ending.attempts >= policy.max_event_attempts:
        if history.dead_letters < DEAD_LETTERS_IN_A_ROW:
            return _bury(policy, history)
    elif ending.progressed or ending.asked:
        return Decision(Action.RESTART), history

    history = _charge(policy, history, now)
    if ending.restoring and policy.max_restore_attempts:
        history = replace(history, restore_failures=history.restore_failures + 1)
        if history.restore_failures >= policy.max_restore_attempts:
            return _roll_back(policy, history, ending, jitter)
    if history.degraded or _is_exhausted(policy, history):
        return _exhaust(
            policy, history, f"{len(history.charges)} restarts without a committed event"
        )
    return Decision(Action.RESTART, _delay(policy, history.streak, jitter)), history


def after_restore(history: History) -> History:
    """The history to keep when a state was restored: it is the operator's state now."""
    return replace(history, restore_failures=0)


def _bury(policy: RestartPolicy, history: History) -> tuple[Decision, History]:
    """The charges of the event's attempts go with it: a robot may meet two bad events in a row."""
    history = History(dead_letters=history.dead_letters + 1)
    if history.dead_letters < DEAD_LETTERS_IN_A_ROW:
        return Decision(Action.RESTART, bury=True), history
    why = f"{history.dead_letters} dead letters without a committed event between"
    decision, history = _exhaust(policy, history, why)
    return replace(decision, bury=True), history


def _roll_back(
    policy: RestartPolicy, history: History, ending: Ending, jitter: float
) -> tuple[Decision, History]:
    if not ending.has_fallback:
        return Decision(Action.STOP, why="the saved state cannot be restored"), history
    # What was charged was the state's fault; the delay goes on growing.
    decision = Decision(Action.RESTART, _delay(policy, history.streak, jitter), roll_back=True)
    return decision, History(streak=history.streak, dead_letters=history.dead_letters)


def _exhaust(policy: RestartPolicy, history: History, why: str) -> tuple[Decision, History]:
    if policy.exhausted == "stop":
        return Decision(Action.STOP, why=why), history
    degrade = Decision(Action.DEGRADE, policy.degraded_retry, why)
    return degrade, replace(history, degraded=True)


def _charge(policy: RestartPolicy, history: History, now: float) -> History:
    recent = history.charges
    if policy.restart_window:
        recent = tuple(when for when in recent if now - when < policy.restart_window)
    # More than these are never looked at, and a degraded operator collects charges for months.
    recent = recent[-policy.max_restarts :] if policy.max_restarts else ()
    return replace(history, charges=(*recent, now), streak=history.streak + 1)


def _is_exhausted(policy: RestartPolicy, history: History) -> bool:
    return bool(policy.max_restarts) and len(history.charges) > policy.max_restarts


def _delay(policy: RestartPolicy, streak: int, jitter: float) -> float:
    if streak <= 1:
        return 0.0
    doublings = min(streak - 2, 60)  # 2**60 is far beyond any bound and still a float
    delay = min(policy.restart_delay * float(2**doublings), policy.max_restart_delay)
    return delay * (1 + JITTER * jitter)

"""The restart decision: one pure function of what ended, what was charged before, and the time.

Charged is an incarnation that ends without having committed a new event; any commit clears the
charges and the delay, because progress is health. A first charge restarts at once (most faults are
transient and a spare is ready), the next ones wait restart_delay, doubled each time up to
max_restart_delay. More than max_restarts charges within restart_window exhaust the policy; what
then happens is `exhausted`:

    degraded   the node stays up, its outputs silent; one more try every degraded_retry seconds
    stop       the node ends
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace

LONGEST_S = 7 * 24 * 3600.0  # of any time; epoll_wait ends at 24 days, with the jitter
JITTER = 0.2  # +-20 %, so that operators that crash together do not come back together for ever

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
    """

    restart_policy: str = "on-failure"
    max_restarts: int = 5
    restart_delay: float = 0.1
    max_restart_delay: float = 10.0
    restart_window: float = 60.0
    exhausted: str = "degraded"
    degraded_retry: float = 30.0

    def __post_init__(self) -> None:
        if self.restart_policy not in _POLICIES:
            raise ValueError(
                f"restart_policy is {self.restart_policy!r}; use one of {', '.join(_POLICIES)}"
            )
        if self.exhausted not in _EXHAUSTED:
            raise ValueError(f"exhausted is {self.exhausted!r}; use one of {', '.join(_EXHAUSTED)}")
        if not self.max_restarts >= 0:
            raise ValueError(f"max_restarts is {self.max_restarts!r}; use 0 or more")
        for name in ("restart_delay", "max_restart_delay", "restart_window", "degraded_retry"):
            check_seconds(name, getattr(self, name))


def check_seconds(name: str, value: float) -> None:
    if not 0 <= value <= LONGEST_S:  # also refuses nan
        raise ValueError(f"{name} is {value!r}; use 0 to {LONGEST_S:.0f} seconds, which is a week")


@dataclass(frozen=True)
class Ending:
    """How an incarnation ended."""

    asked: bool = False  # it returned DoraStatus.STOP or STOP_ALL: not a failure
    progressed: bool = False  # it had committed at least one new event


@dataclass(frozen=True)
class History:
    """What is charged to the operator so far."""

    charges: tuple[float, ...] = ()  # when, within the window
    streak: int = 0  # charges since the last progress, within the window or not
    degraded: bool = False


class Action(enum.Enum):
    RESTART = "restart"
    DEGRADE = "degrade"  # wait `delay`, then one more try
    STOP = "stop"


@dataclass(frozen=True)
class Decision:
    action: Action
    delay: float = 0.0
    why: str = ""


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
        return Decision(Action.RESTART), History()

    history = _charge(policy, history, now)
    if history.degraded or _is_exhausted(policy, history):
        why = f"{len(history.charges)} restarts without a committed event"
        if policy.exhausted == "stop":
            return Decision(Action.STOP, why=why), history
        return (
            Decision(Action.DEGRADE, policy.degraded_retry, why),
            replace(history, degraded=True),
        )
    return Decision(Action.RESTART, _delay(policy, history.streak, jitter)), history


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

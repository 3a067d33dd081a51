"""What follows a death: how the worker ended, what the policy says to that, and what is set aside
because it is to blame, the event or the state.
"""

from __future__ import annotations

import logging
import random
import time
from dataclasses import replace

from dora_state._core import Store
from dora_state.errors import StateError
from dora_state.runtime import inputs, policy
from dora_state.runtime.dead_letter import LetterBox
from dora_state.runtime.delivery import Delivery
from dora_state.runtime.handle import Worker
from dora_state.runtime.offer import Offer
from dora_state.runtime.policy import Action, Decision, Ending, History, RestartPolicy
from dora_state.runtime.workers import Workers

log = logging.getLogger("dora_state.supervisor")

REASON_PATIENCE_S = 0.2
_UNCHARGED = History()  # the same one after each commit, which is most often no change


class Verdict:
    """Keeps the policy's history: what was charged so far."""

    def __init__(
        self,
        node_id: str,
        restart_policy: RestartPolicy,
        workers: Workers,
        delivery: Delivery,
        offer: Offer,
        letters: LetterBox,
    ) -> None:
        self._node_id = node_id  # for the log
        self._policy = restart_policy
        self._workers = workers
        self._delivery = delivery
        self._offer = offer
        self._letters = letters
        self.history = _UNCHARGED

    def after_commit(self) -> None:
        self.history = _UNCHARGED

    def after_restore(self) -> None:
        self.history = policy.after_restore(self.history)

    def restarts_at_once(self, current: Worker) -> bool:
        """Whether the policy is certain to say so, were it to die now."""
        ending = Ending(progressed=current.commits > 0, attempts=self._delivery.attempts)
        decision, _ = policy.decide(self._policy, self.history, ending, now=time.monotonic())
        return decision.action is Action.RESTART and decision.delay == 0 and not decision.bury

    def ending(self, store: Store, dead: Worker) -> Ending:
        failure = dead.failure
        restoring = failure["phase"] == "restore_state" if failure else dead.is_restoring
        event = self._delivery.replay if dead.is_ready else None
        return Ending(
            asked=dead.asked_to_stop,
            progressed=dead.commits > 0,
            attempts=event.attempt - 1 - event.conflicts if event is not None else 0,
            restoring=restoring and not dead.is_ready,
            has_fallback=restoring and self._offer.has_older(store),
        )

    def pronounce(self, store: Store, dead: Worker, ending: Ending) -> Decision:
        """Decide, and set aside what is to blame."""
        assert dead.noticed_end is not None
        now, history, jitter = dead.noticed_end, self.history, random.uniform(-1, 1)
        decision, self.history = policy.decide(
            self._policy, history, ending, now=now, jitter=jitter
        )
        if decision.bury and not self._bury(dead, ending.attempts):
            ending = replace(ending, attempts=0)
            decision, self.history = policy.decide(
                self._policy, history, ending, now=now, jitter=jitter
            )
        if decision.roll_back:
            self._offer.roll_back(store)
        # Its lifeline has restarted it because this was certain to be the decision.
        return Decision(Action.RESTART) if dead.has_successor else decision

    def _bury(self, dead: Worker, attempts: int) -> bool:
        """The event goes to the dead letters. False: they cannot be written now."""
        event = self._delivery.replay
        assert event is not None
        self._workers.await_reason(dead, REASON_PATIENCE_S)
        try:
            letter = self._letters.bury(event, attempts, dead)
        except (StateError, OSError) as error:
            log.error("event %d cannot be set aside: %s", event.number, error)
            return False
        self._delivery.replay = None
        event.over(inputs.DEAD)
        log.error(
            "event %d of input %s is set aside as a dead letter after %d attempts: %s",
            *(letter.number, letter.input_id, letter.attempts, letter.reason),
            extra={
                "dora_state": {
                    "node": self._node_id,
                    "dead_letter": letter.number,
                    "input": letter.input_id,
                    "attempts": letter.attempts,
                    "reason": letter.reason,
                }
            },
        )
        return True


def log_death(node_id: str, dead: Worker, decision: Decision) -> None:
    """To be called after the successor was started, which takes less time than writing a line."""
    failure = dead.failure
    fields = {
        "node": node_id,
        "reason": dead.describe_end(),
        "incarnation": dead.incarnation,
        "phase": failure["phase"] if failure is not None else None,
        "action": decision.action.value,
        "delay_s": decision.delay,
    }
    extra = {"dora_state": fields}
    if failure is not None:
        log.error(
            "the operator failed in %s: %s\n%s",
            *(failure["phase"], failure["error"], failure["traceback"].rstrip()),
            extra=extra,
        )
    if decision.action is Action.DEGRADE:
        log.error(
            "the operator is degraded: %s; its outputs are silent, next try in %g s",
            *(decision.why, decision.delay),
            extra=extra,
        )
    elif decision.action is Action.STOP and not dead.asked_to_stop:
        log.error("the operator is not restarted: %s", decision.why, extra=extra)
    elif decision.delay:
        log.warning("the operator is restarted in %.2f s", decision.delay, extra=extra)

"""What the command line asks of a running host: reload, replay, drop. control.py brings it here."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dora_state.runtime.control import Reply
from dora_state.runtime.dead_letter import LetterBox
from dora_state.runtime.inputs import Event

log = logging.getLogger("dora_state.supervisor")


class Requests:
    """Answers them.

    Args:
        put: takes an event that is to be handed out again.
        reload: has the worker take the new code, or starts one that has it: True, False. Raises
            StateError if neither is possible.
        publish: the letters have changed.
    """

    def __init__(
        self,
        operator: Path,
        letters: LetterBox,
        *,
        put: Callable[[Event], object],
        reload: Callable[[], bool],
        publish: Callable[[], None],
    ) -> None:
        self._operator = operator
        self._letters = letters
        self._put = put
        self._reload = reload
        self._publish = publish
        self._reloads: list[Reply] = []  # who waits for the answer of the current worker

    def take(self, request: dict[str, Any], reply: Reply) -> None:
        """What it raises is the answer."""
        what = request["do"]
        if what == "reload":
            if self._reload():
                self._reloads.append(reply)
            else:
                reply({"started": True})
            return
        if what == "replay":
            for event in self._letters.replay(request["numbers"]):
                self._put(event)
        elif what == "drop":
            self._letters.drop(request["numbers"])
        else:
            raise ValueError(f"this host does not know how to {what}; restart the node")
        reply({})
        self._publish()

    def reloaded(self, failure: dict[str, str] | None) -> None:
        """The worker has the new code, or has failed to take it and goes on."""
        if failure is None:
            log.warning("the operator is reloaded from %s", self._operator)
        else:
            log.error(
                "the operator is not reloaded, and goes on as it was: %s\n%s",
                *(failure["error"], failure["traceback"].rstrip()),
            )
        for reply in self._reloads[:1]:
            reply({"failure": failure} if failure else {"reloaded": True})
        del self._reloads[:1]

    @property
    def awaits_reload(self) -> bool:
        return bool(self._reloads)

    def died(self, how: str) -> None:
        """The worker that was to reload is dead. Its successor, if there is one, has the new code anyway."""
        for reply in self._reloads:
            reply({"died": how})
        self._reloads.clear()

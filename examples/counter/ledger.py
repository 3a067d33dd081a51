"""The ledger: was every number handled exactly once, in its output and in the operator's state?

The source sends 1, 2, 3, ..., so the right total at number n is n (n + 1) / 2, whatever happened before. An event
leaves two traces, its output and its effect on the total, and either may be missing or doubled without the other:
both are checked and counted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence


class Ledger:
    def __init__(self) -> None:
        self.lost = 0
        self.twice = 0
        self.problems: list[str] = []
        self._seen: set[int] = set()
        self._last = 0
        self._error = 0  # by how much the total was off at the last output

    def take(self, number: int, total: int) -> None:
        """Enters one output of the operator."""
        if number in self._seen:
            self.twice += 1
            self.problems.append(f"number {number} came out again")
        elif number < self._last:
            self.problems.append(f"number {number} came out after {self._last}")
        self._seen.add(number)
        self._last = number

        error = total - number * (number + 1) // 2
        if error < self._error:
            self.lost += 1
            self.problems.append(f"at number {number} the total lost {self._error - error}")
        elif error > self._error:
            self.twice += 1
            self.problems.append(
                f"at number {number} the total gained {error - self._error} too much"
            )
        self._error = error

    def close(self, sent: int, kills: int, restarts: int) -> None:
        """Balances the books: what the source sent, how often the killer killed, what the runtime counted.

        A run in which nothing was sent or nobody was killed has shown nothing: that is a problem too.
        """
        sent_numbers = set(range(1, sent + 1))
        if missing := sorted(sent_numbers - self._seen):
            self.lost += len(missing)
            self.problems.append(f"never came out: {_some(missing)}")
        if invented := sorted(self._seen - sent_numbers):
            self.problems.append(f"came out but was never sent: {_some(invented)}")
        if sent == 0:
            self.problems.append("nothing was sent")
        if kills == 0:
            self.problems.append("nobody was killed")
        if kills != restarts:
            self.problems.append(f"{kills} kills, but the runtime counts {restarts} restarts")


def summary(sent: int, lost: int, twice: int, restart_ms: Sequence[float]) -> str:
    """The one line that the example ends with."""
    return (
        f"events {sent}, crashes {len(restart_ms)}, lost {lost}, twice {twice}, "
        f"restart p50 {percentile(restart_ms, 50):.1f} ms p99 {percentile(restart_ms, 99):.1f} ms"
    )


def percentile(values: Sequence[float], percent: float) -> float:
    """Nearest rank: a value that was really measured; nan if there is none."""
    if not values:
        return math.nan
    return sorted(values)[max(0, math.ceil(len(values) * percent / 100) - 1)]


def _some(numbers: Sequence[int], limit: int = 10) -> str:
    text = ", ".join(map(str, numbers[:limit]))
    return text if len(numbers) <= limit else f"{text} and {len(numbers) - limit} more"

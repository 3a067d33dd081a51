"""Kills an operator at random until it is enough: python3 tests/soak.py [--kills 10000] [--minutes 20] [--seed N]

Each incarnation gets some events and dies by SIGKILL at a moment of its own: while it starts, in a handler, in a
commit, or idle. Prints the figures and ends with exit code 0 only if every event was handled exactly once, in the
outputs and in the saved state, and if there was time for all kills.
"""

from __future__ import annotations

import argparse
import logging
import operator
import random
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Figures:
    kills: int
    restarts: int
    events: int
    lost: int  # events without an output
    outputs_twice: int
    outputs_wrong: int  # that say another count or sum than at their turn, or come out of it
    effects_lost: int  # events that the saved state does not count
    effects_twice: int
    seconds: float

    @property
    def are_exact(self) -> bool:
        outputs = self.lost or self.outputs_twice or self.outputs_wrong
        return not (outputs or self.effects_lost or self.effects_twice)

    def __str__(self) -> str:
        return (
            f"kills {self.kills}, restarts {self.restarts}, events {self.events}, lost {self.lost}, "
            f"outputs twice {self.outputs_twice}, outputs wrong {self.outputs_wrong}, "
            f"effects lost {self.effects_lost}, effects twice {self.effects_twice}, {self.seconds:.0f} s"
        )


def soak(hosted, kills: int, *, seed: int, seconds: float = float("inf")) -> Figures:
    """Kill a `Hosted` LEDGER that many times, or for so long, and balance the books."""
    from hosting import kill

    chance = random.Random(seed)
    begin = time.monotonic()
    events = killed = last = 0
    hosted.start()
    while killed < kills and time.monotonic() - begin < seconds:
        del hosted.statuses[:-1]
        count = chance.randrange(1, 6)
        hosted.send(*range(events, events + count))
        events += count
        # Never far ahead, so that the kills hit: after some of the events, and a little more.
        wanted = max(0, events - chance.randrange(0, 6))
        hosted.wait(lambda wanted=wanted: len(hosted.outputs) >= wanted)
        time.sleep(chance.choice((0, 0, chance.uniform(0, 0.003))))
        victim = hosted.statuses[-1]["worker_pid"]
        if victim not in (0, last):
            kill(victim)
            killed, last = killed + 1, victim
            if chance.random() < 0.7:  # else the next one is killed while it starts
                hosted.wait(lambda dead=victim: hosted.statuses[-1]["worker_pid"] not in (0, dead))
    hosted.wait_outputs(events)
    hosted.finish()
    return balance(hosted, killed, events, time.monotonic() - begin)


def balance(hosted, kills: int, events: int, seconds: float) -> Figures:
    from hosting import ledger

    right = dict(enumerate(ledger(events)))
    numbers = [int(text.split()[0]) for text in hosted.texts]
    state = hosted.state()
    counted = int(state.get("count", b"0"))
    total_is_right = int(state.get("total", b"0")) == events * (events - 1) // 2
    twice = max(0, counted - events)
    return Figures(
        kills=kills,
        restarts=hosted.supervisor.restarts,
        events=events,
        lost=events - len(set(numbers)),
        outputs_twice=len(numbers) - len(set(numbers)),
        outputs_wrong=sum(map(operator.ne, map(right.get, numbers), hosted.texts))
        + sum(map(operator.gt, numbers, numbers[1:])),
        effects_lost=max(0, events - counted),
        # A total that is wrong beside a right count: one was lost for one that counts twice.
        effects_twice=twice if twice or total_is_right else 1,
        seconds=seconds,
    )


def main() -> int:
    parser = argparse.ArgumentParser(description="Kills an operator at random.")
    parser.add_argument("--kills", type=int, default=10_000)
    parser.add_argument("--minutes", type=float, default=20, help="at most (default 20)")
    parser.add_argument("--seed", type=int, default=random.randrange(2**32))
    options = parser.parse_args()
    sys.path.insert(0, str(REPOSITORY / "tests" / "runtime"))
    from hosting import Hosted

    logging.getLogger("dora_state").setLevel(logging.CRITICAL)
    print(f"at most {options.kills} kills in {options.minutes:g} minutes, seed {options.seed}")
    with tempfile.TemporaryDirectory() as folder:
        hosted = Hosted(Path(folder))
        try:
            figures = soak(hosted, options.kills, seed=options.seed, seconds=60 * options.minutes)
        finally:
            hosted.close()
    print(figures, flush=True)
    if figures.kills < options.kills:
        print(
            f"there was no time for {options.kills - figures.kills} kills; give it more --minutes"
        )
        return 1
    return 0 if figures.are_exact else 1


if __name__ == "__main__":
    if "--here" in sys.argv:  # this interpreter has dora-state
        sys.argv.remove("--here")
        sys.exit(main())
    sys.path.insert(0, str(REPOSITORY / "tools"))
    import subprocess

    import environment

    environment.create()
    environment.install_package("test")
    command = [environment.program("python"), __file__, "--here", *sys.argv[1:]]
    sys.exit(subprocess.run(command, env=environment.variables(), check=False).returncode)

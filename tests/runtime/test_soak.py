"""tests/soak.py in short, and whether it would notice."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

from hosting import LEDGER

sys.path.insert(0, str(Path(__file__).parents[1]))

from soak import balance, main, soak

KILLS = int(os.environ.get("DORA_STATE_TEST_KILLS", "800"))  # test_restart.py has 200 more


def test_hundreds_of_random_kills_leave_everything_exact(host):
    figures = soak(host(), KILLS, seed=KILLS)
    assert figures.are_exact, figures
    assert figures.kills == KILLS
    # One that is killed while it waits for its START is replaced without being counted as the current one.
    assert 0 < figures.restarts <= KILLS


def test_the_balance_sees_what_is_wrong(host):
    hosted = host(LEDGER.replace("self.count += 1", "self.count += 1 + (number == 3)")).start()
    hosted.send(*range(5))
    hosted.wait_outputs(5)
    hosted.outputs.append(hosted.outputs[2])
    del hosted.outputs[0]
    hosted.finish()
    figures = balance(hosted, kills=0, events=5, seconds=0)
    assert (figures.lost, figures.outputs_twice, figures.effects_twice) == (1, 1, 1)
    assert figures.outputs_wrong == 3  # of the events 3 and 4, and one out of its turn
    assert not figures.are_exact


def test_a_soak_that_had_no_time_for_its_kills_has_not_passed(monkeypatch, capfd):
    logger = logging.getLogger("dora_state")
    level = logger.level
    try:
        for minutes, code in (("0", 1), ("1", 0)):
            monkeypatch.setattr(sys, "argv", ["soak.py", "--kills", "3", "--minutes", minutes])
            assert main() == code
    finally:
        logger.setLevel(level)
    assert "there was no time for 3 kills" in capfd.readouterr().out

"""Poison events: set aside after their attempts, kept, and handled exactly once when they are replayed."""

from __future__ import annotations

import os
import random
import threading

import pytest
from hosting import LEDGER, Hosted, kill

from dora_state import Store
from dora_state.runtime import control, dead_letter, inputs
from dora_state.runtime.policy import DEAD_LETTERS_IN_A_ROW, RestartPolicy

POLICY = RestartPolicy(restart_delay=0.0)

# LEDGER, but some numbers are too much for it, as long as a file is there.
POISONED = LEDGER.replace(
    "self.count += 1",
    "if number in POISON and os.path.exists('TROUBLE'): raise ValueError('cannot take %d' % number)\n"
    "                self.count += 1",
).replace("class Operator", "import os\n    class Operator")


def poisoned(hosted_folder, *numbers: int, how: str = "") -> str:
    trouble = hosted_folder / "trouble"
    trouble.touch()
    source = POISONED.replace("POISON", repr(numbers)).replace("TROUBLE", str(trouble))
    return source.replace("raise ValueError('cannot take %d' % number)", how) if how else source


def ledger_of(*numbers: int) -> list[str]:
    lines, total = [], 0
    for count, number in enumerate(numbers, start=1):
        total += number
        lines.append(f"{number} {count} {total}")
    return lines


def letters(hosted: Hosted) -> dead_letter.Letters:
    """After the end, or beside the running host."""
    with Store(hosted.store_path, read_only=True) as store:
        return dead_letter.read(store)


def ask(hosted: Hosted, do: str, *numbers: int) -> dict[str, object]:
    path = control.path_beside(hosted.store_path)
    answer = control.ask(path, {"do": do, "numbers": list(numbers)}, 60.0)
    assert answer is not None
    return answer


HOW = {
    "an exception": "raise ValueError('no')",
    "SIGKILL": "os.kill(os.getpid(), 9)",
    "abort": "os.abort()",
    "exit": "os._exit(0)",
}


@pytest.mark.parametrize("how", HOW.values(), ids=HOW.keys())
def test_an_event_is_set_aside_after_three_attempts_and_the_next_is_handled(host, tmp_path, how):
    hosted = host(poisoned(tmp_path, 1, how=how), policy=POLICY).start()
    hosted.send(0, 1, 2)
    assert hosted.wait_outputs(2) == ledger_of(0, 2)
    hosted.finish()
    (letter,) = letters(hosted).letters
    assert (letter.number, letter.input_id, letter.attempts) == (2, "in", 3)
    reasons = ["exception in event: ValueError: no", "signal 9 (SIGKILL)", "signal 6 (SIGABRT)"]
    assert letter.reason in [*reasons, "exit code 0"]
    assert hosted.supervisor.restarts == 3
    assert hosted.step().number == 3
    assert hosted.state() == {"count": b"2", "total": b"2"}
    assert hosted.statuses[-1]["dead_letters"] == {"kept": 1, "buried": 1, "dropped": 0}


def test_a_letter_keeps_the_event_with_its_metadata_and_the_traceback(host, tmp_path):
    pa = pytest.importorskip("pyarrow")
    hosted = host(
        """
        class Operator:
            def on_event(self, event, send_output):
                raise ValueError("not this one")
        """,
        policy=POLICY,
    ).start()
    array = pa.array([1.5, None, 2.5])
    hosted.supervisor.submit(
        {"type": "INPUT", "id": "image", "value": array, "metadata": {"width": 3}}
    )
    hosted.wait(lambda: hosted.statuses[-1]["dead_letters"]["kept"] == 1)
    hosted.finish()
    with Store(hosted.store_path) as store:
        content = dead_letter.content(store, 1)
    assert content.event["value"].equals(array)
    assert content.event["metadata"] == {"width": 3}
    assert content.event["id"] == "image"
    assert "ValueError: not this one" in content.traceback


def test_two_poison_events_in_a_row_do_not_degrade(host, tmp_path):
    hosted = host(poisoned(tmp_path, 1, 2), policy=POLICY).start()
    hosted.send(0, 1, 2, 3)
    assert hosted.wait_outputs(2) == ledger_of(0, 3)
    hosted.finish()
    assert [each.number for each in letters(hosted).letters] == [2, 3]
    assert not any(status["state"] == "degraded" for status in hosted.statuses)


def test_a_broken_operator_does_not_eat_its_input(host, tmp_path):
    trouble = tmp_path / "trouble"
    trouble.touch()
    source = LEDGER.replace(
        "self.count += 1",
        f"assert not os.path.exists({str(trouble)!r})\n                self.count += 1",
    ).replace("class Operator", "import os\n    class Operator")
    policy = RestartPolicy(restart_delay=0.0, degraded_retry=0.001)
    hosted = host(source, policy=policy).start()
    hosted.send(*range(10))
    hosted.wait(lambda: hosted.statuses[-1]["state"] == "degraded")
    hosted.wait(lambda: hosted.supervisor.restarts > 3 * DEAD_LETTERS_IN_A_ROW + 5)
    trouble.unlink()
    assert hosted.wait_outputs(7) == ledger_of(*range(3, 10))
    hosted.finish()
    assert [each.number for each in letters(hosted).letters] == [1, 2, 3]


def test_letters_survive_the_host(host, tmp_path):
    first = host(poisoned(tmp_path, 1), policy=POLICY).start()
    first.send(0, 1, 2)
    first.wait_outputs(2)
    first.finish()
    second = host(poisoned(tmp_path, 1), policy=POLICY).start()
    second.send(3)
    assert second.wait_outputs(1) == ["3 3 5"]  # and no number is given twice
    second.finish()
    assert [each.number for each in letters(second).letters] == [2]
    assert second.step().number == 4


@pytest.mark.parametrize(
    "kill_point", ["", "event@4", "before-commit@4", "after-commit@4", "after-ack@4"]
)
def test_a_replay_in_a_running_host_is_a_new_event_and_counts_once(host, tmp_path, kill_point):
    hosted = host(poisoned(tmp_path, 1), policy=POLICY, kill=kill_point).start()
    hosted.send(0, 1, 2)
    hosted.wait_outputs(2)
    (tmp_path / "trouble").unlink()
    assert ask(hosted, "replay", 2) == {}
    assert hosted.wait_outputs(3) == ledger_of(0, 2, 1)
    hosted.send(3)
    assert hosted.wait_outputs(4) == ledger_of(0, 2, 1, 3)
    hosted.finish()
    assert hosted.step().number == 5
    assert letters(hosted).letters == ()


def test_a_replay_that_fails_again_is_set_aside_again(host, tmp_path):
    hosted = host(poisoned(tmp_path, 1), policy=POLICY).start()
    hosted.send(0, 1, 2)
    hosted.wait_outputs(2)
    ask(hosted, "replay", 2)
    hosted.wait(lambda: hosted.statuses[-1]["dead_letters"]["buried"] == 2)
    hosted.send(3)
    assert hosted.wait_outputs(3) == ledger_of(0, 2, 3)
    hosted.finish()
    (letter,) = letters(hosted).letters
    assert (letter.number, letter.input_id, letter.replay) == (4, "in", False)


def test_a_marked_letter_is_replayed_by_the_next_host(host, tmp_path):
    first = host(poisoned(tmp_path, 1), policy=POLICY).start()
    first.send(0, 1, 2)
    first.wait_outputs(2)
    first.finish()
    with Store(first.store_path) as store:
        dead_letter.mark(store, {2})
    (tmp_path / "trouble").unlink()
    second = host(poisoned(tmp_path), policy=POLICY).start()
    assert second.wait_outputs(1) == ["1 3 3"]
    second.finish()
    assert letters(second).letters == ()


def test_a_replay_that_was_committed_by_a_host_that_died_is_not_replayed_again(host, tmp_path):
    """The worker's commit takes the letter away. A host that is killed before it has noted that..."""
    first = host(poisoned(tmp_path, 1), policy=POLICY).start()
    first.send(0, 1, 2)
    first.wait_outputs(2)
    (tmp_path / "trouble").unlink()
    first.machine.letters.tidy = lambda: None  # ... leaves the mark
    ask(first, "replay", 2)
    first.wait_outputs(3)
    first.finish()
    second = host(poisoned(tmp_path), policy=POLICY).start()
    second.send(3)
    assert second.wait_outputs(1) == ["3 4 6"]
    second.finish()
    assert letters(second).letters == ()


def test_an_arrow_value_is_replayed_as_it_was(host, tmp_path):
    pa = pytest.importorskip("pyarrow")
    trouble = tmp_path / "trouble"
    trouble.touch()
    source = f"""
        import os

        class Operator:
            def on_event(self, event, send_output):
                assert not os.path.exists({str(trouble)!r})
                send_output("back", event["value"], event["metadata"])
                return 0
    """
    first = host(source, policy=POLICY).start()
    arrays = [pa.array([1, 2, 3], pa.int16()), pa.array([["a"], []])]
    for array in arrays:
        first.supervisor.submit(
            {"type": "INPUT", "id": "in", "value": array, "metadata": {"n": len(array)}}
        )
    first.wait(lambda: first.statuses[-1]["dead_letters"]["kept"] == 2)
    first.finish()
    trouble.unlink()
    with Store(first.store_path) as store:
        dead_letter.mark(store, {1, 2})
    second = host(source, policy=POLICY).start()
    second.wait(lambda: len(second.outputs) == 2)
    for output, array in zip(second.outputs, arrays, strict=True):
        assert output.value.equals(array)
        assert output.value.type == array.type
        assert output.metadata == {"n": len(array)}


def test_a_letter_can_be_dropped_and_a_number_that_is_none_is_refused(host, tmp_path):
    hosted = host(poisoned(tmp_path, 1, 3), policy=POLICY).start()
    hosted.send(0, 1, 2, 3, 4)
    hosted.wait_outputs(3)
    assert "there is no dead letter 7" in ask(hosted, "replay", 2, 7)["error"]
    assert "does not know how to sing" in ask(hosted, "sing")["error"]
    assert ask(hosted, "drop", 2) == {}
    assert [each.number for each in letters(hosted).letters] == [4]
    hosted.finish()


def test_the_dead_letters_are_bounded_and_the_oldest_go_first(tmp_path, monkeypatch):
    monkeypatch.setattr(dead_letter, "LETTERS", 3)
    monkeypatch.setattr(dead_letter, "LETTERS_BYTES", 2000)
    with Store(tmp_path / "store") as store:

        def bury(number: int, size: int) -> None:
            event = inputs.take_apart(
                {"type": "INPUT", "id": "in", "value": bytes(size), "metadata": {}}
            )
            event.number = number
            dead_letter.bury(store, event, 3, "why", "", dead_letter.Step(number))

        for number in range(1, 6):
            bury(number, 100)
        known = dead_letter.read(store)
        assert [each.number for each in known.letters] == [3, 4, 5]
        assert (known.buried, known.dropped) == (5, 2)
        assert dead_letter.content(store, 2) is None
        bury(6, 1800)  # makes the others too many bytes
        assert [each.number for each in dead_letter.read(store).letters] == [5, 6]
        bury(7, 5000)  # is listed, but not kept
        last = dead_letter.read(store).letters[-1]
        assert (last.number, last.has_content) == (7, False)
        assert dead_letter.content(store, 7) is None
        with pytest.raises(ValueError, match="was larger than"):
            dead_letter.check(dead_letter.read(store), [7])
        assert dead_letter.step.read(store).number == 7


def test_a_full_disk_keeps_the_event(host, tmp_path, monkeypatch, caplog):
    """What cannot be set aside is tried on, and charged to the operator."""
    source = poisoned(tmp_path, 1)
    hosted = host(source, policy=RestartPolicy(restart_delay=0.0, degraded_retry=0.001)).start()

    def full(*args: object) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(hosted.machine.letters, "bury", full)
    hosted.send(0, 1, 2)
    hosted.wait(lambda: hosted.statuses[-1]["state"] == "degraded")
    (tmp_path / "trouble").unlink()
    assert hosted.wait_outputs(3) == ledger_of(0, 1, 2)
    hosted.finish()
    assert "event 2 cannot be set aside" in caplog.text


STOP_IS_POISON = """
class Operator:
    def on_event(self, event, send_output):
        assert event["type"] != "STOP"
        return 0
"""


def test_a_poisonous_stop_ends_it_all_the_same_but_not_as_a_clean_stop(host):
    hosted = host(
        STOP_IS_POISON,
        policy=POLICY,
    ).start()
    hosted.send(0)
    hosted.supervisor.submit({"type": "STOP", "id": "MANUAL"})
    outcome = hosted.wait_end()
    assert not outcome.clean
    assert hosted.statuses[-1]["state"] == "ended"


def test_a_stop_is_not_replayed(host):
    """It would end the next run at once, in order, and with it its state."""
    hosted = host(
        STOP_IS_POISON,
        policy=POLICY,
    ).start()
    hosted.supervisor.submit({"type": "STOP", "id": "MANUAL"})
    hosted.wait_end()
    known = letters(hosted)
    with pytest.raises(ValueError, match=r"the STOP of a run that is over.*drop the letter"):
        dead_letter.check(known, [known.letters[0].number])
    dead_letter.check(known, [known.letters[0].number], replays=False)


def test_kills_from_outside_between_events_set_nothing_aside(host):
    hosted = host(policy=RestartPolicy(max_restarts=0, restart_delay=0.0)).start()
    incarnation = 0
    for number in range(6):
        status = hosted.wait_running(incarnation + 1)
        incarnation = status["incarnation"]
        hosted.send(number)
        hosted.wait_outputs(number + 1)
        kill(status["worker_pid"])
    hosted.finish()
    assert letters(hosted).letters == ()


# The host dies, too

COUNTS = """
    import os

    class Operator:
        counts = {}

        def restore_state(self, state):
            self.counts = {key: int(count) for key, count in state.items()}

        def on_event(self, event, send_output):
            number = int(event["value"])
            if number % 3 == 0 and os.path.exists(TROUBLE): raise ValueError(number)
            self.counts[str(number)] = self.counts.get(str(number), 0) + 1
            self.save_state(str(number), b"%d" % self.counts[str(number)])
            send_output("number", event["value"])
            return 0
"""
LIVES = 6


def test_whenever_the_host_is_killed_an_event_has_its_effect_or_is_a_letter(
    host_process, tmp_path, monkeypatch
):
    """And when the letters are replayed, each has its effect exactly once."""
    monkeypatch.setenv("EVENT_ATTEMPTS", "2")
    chance = random.Random(LIVES)
    trouble = tmp_path / "trouble"
    trouble.touch()
    source = COUNTS.replace("TROUBLE", repr(str(trouble)))

    def live(numbers: range) -> None:
        host = host_process(source)
        host.wait_running()
        host.send(*numbers)
        threading.Event().wait(chance.uniform(0, 0.05))  # a random moment is the point here
        kill(host.popen.pid)
        host.close()

    def effects_and_letters() -> tuple[dict[int, int], dict[int, int]]:
        with Store(tmp_path / "store") as store:
            store.settle()
            found = {int(key): int(count) for key, count in store.items()}
            listed = dead_letter.read(store).letters
            contents = [dead_letter.content(store, each.number) for each in listed]
            return found, {
                int(content.event["value"]): letter.number
                for content, letter in zip(contents, listed, strict=True)
            }

    # Each third event is bad, and never three in a row: it is not degraded.
    for life in range(LIVES):
        live(range(100 * life, 100 * life + 30))
    effects, letters = effects_and_letters()
    assert set(effects.values()) <= {1}
    assert all(number % 3 == 0 for number in letters)
    assert not set(effects) & set(letters)
    assert letters, "nothing was set aside"

    trouble.unlink()
    with Store(tmp_path / "store") as store:
        dead_letter.mark(store, set(letters.values()))
    for _ in range(LIVES):
        live(range(0))
        assert set(effects_and_letters()[0].values()) <= {1}
    last = host_process(source)
    last.wait_running()
    last.wait(lambda: any(not line.get("dead_letters", {"kept": 1})["kept"] for line in last.lines))
    last.close()
    effects, left = effects_and_letters()
    assert left == {}
    assert set(effects.values()) == {1}
    assert set(letters) <= set(effects)


def test_a_host_that_is_killed_then_gives_the_number_of_a_letter_to_no_other_event(
    host_process, tmp_path, monkeypatch
):
    monkeypatch.setenv("EVENT_ATTEMPTS", "1")
    (tmp_path / "trouble").touch()
    source = COUNTS.replace("TROUBLE", repr(str(tmp_path / "trouble")))
    for life in (1, 2):
        host = host_process(source)
        host.wait_running()
        host.send(3 * life)
        host.wait(
            lambda host=host, life=life: any(
                line.get("dead_letters", {"kept": 0})["kept"] == life for line in host.lines
            )
        )
        kill(host.popen.pid)
        host.close()
    with Store(tmp_path / "store") as store:
        assert [each.number for each in dead_letter.read(store).letters] == [1, 2]
        assert [dead_letter.content(store, n).event["value"] for n in (1, 2)] == [b"3", b"6"]

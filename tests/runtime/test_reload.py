"""dora-state reload, from the runtime's side: new code, the old object's attributes, the old object if it fails."""

from __future__ import annotations

import os
import socket
import textwrap
import threading

import pytest
from hosting import LEDGER, Hosted, kill, wait_file, wait_gone

from dora_state.runtime import control
from dora_state.runtime.policy import RestartPolicy

NEW = LEDGER.replace('b"%d %d %d"', 'b"new %d %d %d"')


def write(hosted: Hosted, source: str) -> None:
    hosted.operator.write_text(textwrap.dedent(source))


def reload(hosted: Hosted) -> dict[str, object]:
    answer = control.ask(control.path_beside(hosted.store_path), {"do": "reload"}, 60.0)
    assert answer is not None
    return answer


def test_the_new_code_goes_on_with_the_attributes_of_the_old(host):
    source = LEDGER.replace(
        "self.count = self.total = 0", "self.count = self.total = 0; self.born = 0"
    )
    hosted = host(source).start()
    hosted.send(0, 1)
    hosted.wait_outputs(2)
    pid = hosted.wait_running()["worker_pid"]
    write(hosted, NEW.replace("self.count = self.total = 0", "self.count = self.total = 1000"))
    assert reload(hosted) == {"reloaded": True}
    hosted.send(2)
    assert hosted.wait_outputs(3)[2] == "new 2 3 3"
    assert hosted.wait_running()["worker_pid"] == pid  # the same process
    assert hosted.supervisor.restarts == 0
    kill(pid)
    hosted.send(3)
    assert hosted.wait_outputs(4)[3] == "new 3 4 6"  # the successor has the new code, too
    hosted.finish()


def test_a_class_that_calls_itself_something_else_is_reloaded(host):
    hosted = host(LEDGER.replace("class Operator", "class Old") + "\n    Operator = Old\n").start()
    hosted.send(0)
    hosted.wait_outputs(1)
    write(hosted, NEW.replace("class Operator", "class New") + "\n    Operator = New\n")
    assert reload(hosted) == {"reloaded": True}
    hosted.send(1)
    assert hosted.wait_outputs(2)[1] == "new 1 2 1"


TYPED = """
    from dora_state import state

    class Operator:
        seen: dict = state({}, keyed=True)
        count: int = state(0)

        def on_event(self, event, send_output):
            number = int(event["value"])
            self.count += 1
            self.seen[number] = self.count
            self.seen.pop(number - 2, None)
            send_output("seen", b"%s %d %s" % (b"old", self.count, repr(self.seen).encode()))
            return 0
"""


def test_declared_fields_go_on_after_a_reload(host):
    """What the new code takes out of them right away is not back after a restart."""
    hosted = host(TYPED).start()
    hosted.send(0, 1)
    hosted.wait_outputs(2)
    write(hosted, TYPED.replace('b"old"', 'b"new"'))
    assert reload(hosted) == {"reloaded": True}
    hosted.send(2)
    assert hosted.wait_outputs(3)[2] == "new 3 {1: 2, 2: 3}"
    kill(hosted.wait_running()["worker_pid"])
    hosted.send(3)
    assert hosted.wait_outputs(4)[3] == "new 4 {2: 3, 3: 4}"


def test_a_reload_migrates_fields_and_is_refused_if_it_would_forget_one(host):
    hosted = host(TYPED).start()
    hosted.send(0)
    hosted.wait_outputs(1)
    fewer = TYPED.replace("count: int = state(0)", "count = 0")
    write(hosted, fewer)
    failure = reload(hosted)["failure"]
    assert "the field count was saved, but the class does not declare it" in failure["error"]
    hosted.send(1)
    assert hosted.wait_outputs(2)[1] == "old 2 {0: 1, 1: 2}"
    migration = """
        state_version = 2

        def migrate_state(self, state, version):
            del state["count"]

        def on_event"""
    write(hosted, fewer.replace("\n        def on_event", migration).replace('b"old"', 'b"new"'))
    assert reload(hosted) == {"reloaded": True}
    hosted.send(2)
    assert hosted.wait_outputs(3)[2] == "new 1 {1: 2, 2: 1}"
    hosted.finish()
    assert sorted(hosted.state()) == ["@", "@seen[1]", "@seen[2]"]


FAILS = """
        state_version = 2

        def migrate_state(self, state, version):
            state["seen"][7] = 7
            del state["seen"][0]
            state["deep"]["list"].append(1)
            state["count"] = 100
            self.stray = 1
            del self.plain
            {failure}

        def on_event"""


@pytest.mark.parametrize(
    ("failure", "told"),
    [
        ("raise ValueError('half-way')", "ValueError: half-way"),
        ("state['seen'] = 5", "the field seen is keyed and was given a int"),
    ],
)
def test_a_migration_that_fails_half_way_changes_nothing_under_the_old_object(host, failure, told):
    source = TYPED.replace(
        "count: int = state(0)",
        """count: int = state(0)
        deep: dict = state({"list": []})
        plain = None

        def __init__(self):
            self.plain = 'kept'""",
    ).replace(
        "repr(self.seen).encode()",
        "repr([self.seen, self.deep, self.plain, hasattr(self, 'stray')]).encode()",
    )
    hosted = host(source).start()
    hosted.send(0)
    hosted.wait_outputs(1)
    write(hosted, source.replace("\n        def on_event", FAILS.format(failure=failure)))
    assert told in reload(hosted)["failure"]["error"]
    hosted.send(1)
    expected = "old 2 [{0: 1, 1: 2}, {'list': []}, 'kept', False]"
    assert hosted.wait_outputs(2)[1] == expected
    write(hosted, source)
    kill(hosted.wait_running()["worker_pid"])  # nor in what was saved
    hosted.send(2)
    assert hosted.wait_outputs(3)[2] == "old 3 [{1: 2, 2: 3}, {'list': []}, 'kept', False]"


def test_a_field_that_cannot_be_copied_is_not_migrated_by_a_reload(host):
    source = TYPED.replace(
        "class Operator:",
        """class Lock:
        def __deepcopy__(self, memo):
            raise TypeError("it is one of a kind")

    class Codec:
        encode = staticmethod(lambda value: b"")
        decode = staticmethod(lambda data: Lock())

    class Operator:
        lock = state(codec=Codec, in_place=False)

        def __init__(self):
            self.lock = Lock()
""",
    )
    hosted = host(source).start()
    hosted.send(0)
    hosted.wait_outputs(1)
    write(hosted, source.replace("\n        def on_event", FAILS.format(failure="pass")))
    told = "the field lock cannot be copied for migrate_state: it is one of a kind; restart the operator"
    assert told in reload(hosted)["failure"]["error"]
    hosted.send(1)
    assert hosted.wait_outputs(2)[1] == "old 2 {0: 1, 1: 2}"


BROKEN = {
    "a file that is no Python": ("def broken(:", "SyntaxError"),
    "a file that raises half-way": ("PREFIX = b'broken'\n1 / 0", "ZeroDivisionError"),
    "an __init__ that raises": (
        "class Operator:\n    def __init__(self): raise ValueError('no')\n"
        "    def on_event(self, event, send_output): return 0",
        "ValueError: no",
    ),
    "no class": ("x = 1", "has no class Operator"),
    "an exit": ("import sys; sys.exit(1)", "SystemExit"),
}


@pytest.mark.parametrize(("source", "told"), BROKEN.values(), ids=BROKEN.keys())
def test_the_old_object_stays_if_the_new_code_fails(host, source, told, caplog):
    old = LEDGER.replace("class Operator", 'PREFIX = b"old"\n    class Operator')
    # By its name, as pickle and dataclasses would find it, and directly.
    old = old.replace('b"%d %d %d"', 'PREFIX + sys.modules[__name__].PREFIX + b" %d %d %d"')
    old = old.replace("class Operator", "import sys\n    class Operator")
    hosted = host(old).start()
    hosted.send(0)
    hosted.wait_outputs(1)
    write(hosted, source)
    failure = reload(hosted)["failure"]
    assert told in failure["error"]
    hosted.send(1)
    assert hosted.wait_outputs(2)[1] == "oldold 1 2 1"  # its module is what it was, too
    assert "is not reloaded, and goes on as it was" in caplog.text
    write(hosted, old)
    hosted.finish()
    assert hosted.supervisor.restarts == 0


def test_a_reload_waits_for_the_handler_and_doubles_nothing(host, tmp_path):
    source = LEDGER.replace(
        "self.count += 1",
        f"open({str(tmp_path / 'fifo')!r}).read()\n                self.count += 1",
    )
    os.mkfifo(tmp_path / "fifo")
    hosted = host(source).start()
    hosted.send(0)
    with open(tmp_path / "fifo", "w"):  # until it reads from there
        write(hosted, NEW)
        answers: list[dict[str, object]] = []
        thread = threading.Thread(target=lambda: answers.append(reload(hosted)))
        thread.start()
    thread.join()
    assert answers == [{"reloaded": True}]
    hosted.send(1)
    assert hosted.wait_outputs(2) == ["0 1 0", "new 1 2 1"]


def test_a_degraded_operator_is_started_with_the_new_code_at_once(host):
    policy = RestartPolicy(max_restarts=1, restart_delay=0.0, degraded_retry=3600.0)
    broken = LEDGER.replace("self.count = self.total = 0", "raise RuntimeError('broken')")
    hosted = host(broken, policy=policy).start()
    hosted.wait(lambda: hosted.statuses[-1]["state"] == "degraded")
    write(hosted, NEW)
    hosted.send(0)
    assert reload(hosted) == {"started": True}
    assert hosted.wait_outputs(1) == ["new 0 1 0"]


def test_an_operator_that_dies_in_a_reload_is_restarted_with_the_new_code(host):
    hosted = host().start()
    hosted.send(0)
    hosted.wait_outputs(1)
    pid = hosted.wait_running()["worker_pid"]
    write(
        hosted,
        f"import os\nif os.getpid() == {pid}: os.abort()\n" + textwrap.dedent(NEW),
    )
    assert reload(hosted) == {"died": "signal 6 (SIGABRT)"}
    assert wait_gone(pid)
    hosted.send(1)
    assert hosted.wait_outputs(2)[1] == "new 1 2 1"


HANG = "threading.Event().wait()"
HANGS = {
    "its import": ("class Operator", f"{HANG}\n    class Operator"),
    "__init__": ("def on_event", f"def __init__(self): {HANG}\n\n        def on_event"),
    "migrate_state": (
        "def on_event",
        f"state_version = 2\n\n        def migrate_state(self, state, version): {HANG}\n\n        def on_event",
    ),
}


@pytest.mark.parametrize(("place", "hang"), HANGS.values(), ids=HANGS.keys())
def test_a_reload_that_hangs_is_interrupted_if_hangs_are_killed(host, caplog, place, hang):
    """The old object goes on in its process, and who asked is told where the new code was."""
    source = TYPED.replace("from dora_state", "import threading\n    from dora_state")
    source = source.replace(
        "self.count += 1", "self.count += 1; self.plain = self.__dict__.get('plain', 0) + 1"
    )
    source = source.replace("repr(self.seen)", "repr([self.seen, self.plain])")
    policy = RestartPolicy(start_deadline=1.0, kill_hung=["start"])
    hosted = host(source, policy=policy).start()
    hosted.send(0)
    hosted.wait_outputs(1)
    pid = hosted.wait_running()["worker_pid"]
    write(hosted, source.replace('b"old"', 'b"new"').replace(place, hang))
    failure = reload(hosted)["failure"]
    assert "HungError: it was interrupted, as its start_deadline had passed" in failure["error"]
    assert "op.py" in failure["traceback"]
    assert "threading.py" in failure["traceback"]
    hosted.send(1)
    assert hosted.wait_outputs(2)[1] == "old 2 [{0: 1, 1: 2}, 2]"
    assert hosted.wait_running()["worker_pid"] == pid
    write(hosted, source.replace('b"old"', 'b"new"'))
    assert reload(hosted) == {"reloaded": True}
    hosted.send(2)
    assert hosted.wait_outputs(3)[2] == "new 3 [{1: 2, 2: 3}, 3]"
    assert hosted.finish().clean
    assert hosted.supervisor.restarts == 0
    assert hosted.statuses[-1]["hangs"] == 1
    assert "the operator has been in its reload for 1" in caplog.text
    assert "that is interrupted, and the old object goes on" in caplog.text


def test_a_reload_that_does_not_take_the_interrupt_is_killed(host, capfd):
    """With its stacks in the log; the successor starts with the new code and the saved state."""
    policy = RestartPolicy(start_deadline=0.5, kill_hung=["start"])
    hosted = host(policy=policy).start()
    hosted.send(0)
    hosted.wait_outputs(1)
    pid = hosted.wait_running()["worker_pid"]
    write(
        hosted,
        f"""
import os, threading
while os.getpid() == {pid}:
    try:
        threading.Event().wait()
    except BaseException:
        pass
"""
        + textwrap.dedent(NEW),
    )
    assert reload(hosted) == {"died": "hang in reload"}
    hosted.send(1)
    assert hosted.wait_outputs(2)[1] == "new 1 2 1"
    hosted.finish()
    assert "hang in reload" in str([each["last_crash"] for each in hosted.statuses])
    errors = capfd.readouterr().err
    assert "Fatal Python error: Aborted" in errors
    assert "op.py" in errors


def test_by_default_a_reload_that_hangs_is_only_told(host, tmp_path, caplog):
    """As such, and not as a hang of the event that waits behind it."""
    policy = RestartPolicy(start_deadline=1.0, event_deadline=0.5)
    hosted = host(policy=policy).start()
    hosted.send(0)
    hosted.wait_outputs(1)
    go = tmp_path / "go"
    write(
        hosted,
        f"import os, time\nprint('begun', file=open({str(tmp_path / 'begun')!r}, 'w'))\n"
        f"while not os.path.exists({str(go)!r}): time.sleep(0.01)\n" + textwrap.dedent(NEW),
    )
    answers: list[dict[str, object]] = []
    thread = threading.Thread(target=lambda: answers.append(reload(hosted)))
    thread.start()
    wait_file(tmp_path / "begun")
    hosted.send(1)
    hosted.wait(lambda: hosted.statuses[-1]["hangs"] == 1)
    go.touch()
    thread.join()
    assert answers == [{"reloaded": True}]
    assert hosted.wait_outputs(2)[1] == "new 1 2 1"
    assert hosted.finish().clean
    assert hosted.supervisor.restarts == 0
    told = [r.dora_state for r in caplog.records if "hang" in getattr(r, "dora_state", {})]
    assert (told[0]["hang"], told[0]["killed"]) == ("reload", False)
    assert "interrupted" not in caplog.text


def test_nobody_listens_for_a_host_that_has_ended(host):
    hosted = host().start()
    hosted.finish()
    path = control.path_beside(hosted.store_path)
    assert not path.exists()
    assert control.ask(path, {"do": "reload"}, 1.0) is None


def test_a_socket_that_a_killed_host_has_left_is_no_obstacle(host, tmp_path):
    left = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with control._reachable(tmp_path / "store.control") as name:
        left.bind(name)
    left.close()
    hosted = host().start()
    write(hosted, NEW)
    assert reload(hosted) == {"reloaded": True}


def test_a_spare_that_is_importing_the_old_file_is_not_used_for_the_new(host, tmp_path):
    """The first import goes through, the spare's waits at the fifo."""
    source = f"""
        import os
        if os.path.exists({str(tmp_path / "first")!r}):
            open({str(tmp_path / "fifo")!r}).read()
        open({str(tmp_path / "first")!r}, "w").close()
    """
    os.mkfifo(tmp_path / "fifo")
    hosted = host(textwrap.dedent(source) + textwrap.dedent(LEDGER)).start()
    with open(tmp_path / "fifo", "w"):  # until it reads from there
        write(hosted, NEW)
        kill(hosted.wait_running()["worker_pid"])
        hosted.send(0)
        assert hosted.wait_outputs(1) == ["new 0 1 0"]

"""kvs_* in real custom nodes, and in processes that dora did not start."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import dataflows
import pytest

from dora_state import Store

NODES = """
nodes:
  - id: ping
    path: ping.py
    inputs: {{tick: dora/timer/millis/50, gone: pong/gone}}
    outputs: [word]
{ping}
  - id: pong
    path: pong.py
    inputs: {{word: ping/word}}
    outputs: [gone]
{pong}
"""
PING = """
from dora import Node
from dora_state import kvs_delete, kvs_keys, kvs_read, kvs_write
assert kvs_read("ping/word", default=None) is None
kvs_write("ping/word", b"from ping")
node = Node()
for event in node:
    if event["type"] == "INPUT":
        node.send_output("word", b"written")
    elif event["type"] != "INPUT_CLOSED" or event["id"] == "gone":
        break
print("keys", kvs_keys(), kvs_keys("po"), flush=True)
print("pong says", kvs_read("pong/word").decode(), flush=True)
"""
PONG = """
import os
from dora import Node
os.chdir("/")  # a node may go elsewhere before its first call
from dora_state import kvs_delete, kvs_keys, kvs_read, kvs_write
node = Node()  # pong/gone closes with it
for event in node:
    if event["type"] == "INPUT":
        break
print("ping says", kvs_read("ping/word").decode(), flush=True)
kvs_write("pong/word", b"from pong")
kvs_write("gone", b"")
print("deleted", kvs_delete("gone"), kvs_delete("gone"), flush=True)
try:
    kvs_read("gone")
except KeyError as error:
    print("KeyError", error, flush=True)
"""


def write(flow: Path, ping: str = "", pong: str = "", before_pong: str = "") -> None:
    (flow / "ping.py").write_text(PING)
    (flow / "pong.py").write_text(before_pong + PONG)
    text = NODES.format(ping=textwrap.indent(ping, "    "), pong=textwrap.indent(pong, "    "))
    (flow / "dataflow.yml").write_text(text)


def check(result: dataflows.Result) -> None:
    assert result.code == 0, result.log
    assert result.said("pong") == ["ping says from ping", "deleted True False", "KeyError 'gone'"]
    assert result.said("ping") == [
        "keys ['ping/word', 'pong/word'] ['pong/word']",
        "pong says from pong",
    ]


def test_two_custom_nodes_share_a_store_beside_the_dataflow(flow):
    write(flow, before_pong="import dora_state\n")  # before it leaves the folder
    check(dataflows.run(flow))
    with Store(flow / "state" / "shared", read_only=True) as store:
        assert sorted(store) == ["ping/word", "pong/word"]


def test_the_environment_names_another_place(flow, tmp_path):
    write(flow)
    check(dataflows.run(flow, DORA_STATE_DIR=str(tmp_path / "elsewhere")))
    assert (tmp_path / "elsewhere" / "shared").is_dir()
    assert not (flow / "state").exists()


def test_the_dataflow_file_names_another_place(flow, tmp_path):
    place = f"env:\n  DORA_STATE_DIR: {tmp_path}/elsewhere"
    write(flow, ping=place)  # pong learns it from the file
    check(dataflows.run(flow))
    assert (tmp_path / "elsewhere" / "shared").is_dir()
    assert not (flow / "state").exists()


def test_two_places_in_one_dataflow_are_refused(flow):
    write(flow, ping="env:\n  DORA_STATE_DIR: one", pong="env:\n  DORA_STATE_DIR: other")
    result = dataflows.run(flow)
    assert result.code != 0
    assert "keeps its state in" in result.log


# Two dataflows, late comers, restarted nodes

TALKER = """
nodes:
  - id: {node}
    path: talk.py
    inputs: {{tick: dora/timer/millis/20}}
    env: {{NAME: {node}, OTHER: {other}, PLACE: "{place}"}}
"""
# Writes its name, and ends when the other one has read what it must.
TALK = """
import os, time
from pathlib import Path
from dora import Node
from dora_state import kvs_keys, kvs_read, kvs_write
name, other, place = os.environ["NAME"], os.environ["OTHER"], Path(os.environ["PLACE"])
for event in Node():
    kvs_write("last", name.encode())
    kvs_write(f"from/{name}", b"1")
    (place / f"{name} has written").touch()
    if (place / f"{other} has written").exists():
        break
print("keys", kvs_keys("from/"), flush=True)
(place / f"{name} has read").touch()
while not (place / f"{other} has read").exists():
    time.sleep(0.01)
"""


def talk(tmp_path: Path, **variables: str) -> dict[str, list[str]]:
    """Two dataflows at the same time; what each has seen."""
    with contextlib.ExitStack() as stack:
        flows = {}
        for node, other in (("left", "right"), ("right", "left")):
            folder = tmp_path / f"flow of {node}"
            folder.mkdir()
            (folder / "talk.py").write_text(TALK)
            text = TALKER.format(node=node, other=other, place=tmp_path)
            (folder / "dataflow.yml").write_text(text)
            flows[node] = stack.enter_context(dataflows.start(folder, **variables))
        results = {}
        for node, flow in flows.items():
            log, _ = flow.communicate(timeout=60)
            assert flow.returncode == 0, log
            results[node] = dataflows.Result(flow.returncode, log).said(node)
    return results


def test_i36_two_dataflows_never_see_each_others_keys(tmp_path):
    assert talk(tmp_path) == {"left": ["keys ['from/left']"], "right": ["keys ['from/right']"]}


def test_i36_two_dataflows_that_name_one_directory_see_each_others_keys(tmp_path):
    both = ["keys ['from/left', 'from/right']"]
    place = str(tmp_path / "together")
    assert talk(tmp_path, DORA_STATE_DIR=place) == {"left": both, "right": both}


COUNTER = """
nodes:
  - id: counter
    path: counter.py
    restart_policy: on-failure
    inputs: {tick: dora/timer/millis/20}
  - id: late
    path: late.py
    inputs: {tick: dora/timer/millis/20}
"""
COUNT = """
import os, signal
from dora import Node
from dora_state import kvs_read, kvs_update, kvs_write
node = Node()
lives = int(kvs_update("lives", lambda n: b"%d" % (int(n) + 1), default=b"0"))
if lives > 1:  # it was killed right after its last write
    print("sees", kvs_read("n").decode(), flush=True)
    kvs_write("done", b"")
else:
    for event in node:
        if int(kvs_update("n", lambda n: b"%d" % (int(n) + 1), default=b"0")) == 10:
            os.kill(os.getpid(), signal.SIGKILL)
"""
# Does not look at the store before the other one has died.
LATE = """
from dora import Node
from dora_state import kvs_read, kvs_wait
node = Node()
kvs_wait("done", timeout=60)
print("sees", kvs_read("n").decode(), "of life", kvs_read("lives").decode(), flush=True)
"""


def test_a_restarted_node_and_a_late_joiner_see_the_latest_values(flow):
    (flow / "dataflow.yml").write_text(COUNTER)
    (flow / "counter.py").write_text(COUNT)
    (flow / "late.py").write_text(LATE)
    result = dataflows.run(flow)
    assert result.code == 0, result.log
    assert result.said("counter") == ["sees 10"]
    assert result.said("late") == ["sees 10 of life 2"]
    outside = python(
        "from dora_state import kvs_read; print(kvs_read('n'))", DORA_STATE_DIR=str(flow / "state")
    )
    assert outside.stdout == "b'10'\n", outside.stderr


# Outside of a dataflow


def python(script: str, *arguments: object, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if "DORA" not in name}
    return subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        env={**environment, **variables},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_outside_of_a_dataflow_it_has_to_be_told_where(flow):
    result = python("from dora_state import kvs_read; kvs_read('x')")
    assert "OperatorError: kvs_* needs to know where the shared store is" in result.stderr
    assert "set DORA_STATE_DIR" in result.stderr


def test_outside_of_a_dataflow_the_environment_names_the_place(flow):
    script = (
        "from dora_state import kvs_read, kvs_write; kvs_write('x', b'1'); print(kvs_read('x'))"
    )
    assert python(script, DORA_STATE_DIR=str(flow / "mine")).stdout == "b'1'\n"
    with Store(flow / "mine" / "shared") as store:
        assert dict(store) == {"x": b"1"}


def test_a_forked_child_gets_a_handle_of_its_own(flow):
    script = textwrap.dedent("""
        import os
        from dora_state import kvs_read, kvs_write
        kvs_write("who", b"parent")
        child = os.fork()
        if child == 0:
            assert kvs_read("who") == b"parent"
            kvs_write("who", b"child")
            os._exit(0)
        _, status = os.waitpid(child, 0)
        print(status, kvs_read("who"))
        kvs_write("who", b"parent again")
        print(kvs_read("who"))
    """)
    result = python(script, DORA_STATE_DIR=str(flow))
    assert result.stdout == "0 b'child'\nb'parent again'\n", result.stderr


@pytest.mark.parametrize(
    ("call", "error"),
    [
        ("kvs_write(1, b'')", "TypeError"),
        ("kvs_write('x', 'text')", "TypeError"),
        ("kvs_read(b'x')", "TypeError"),
        ("kvs_keys(b'x')", "TypeError"),
        ("kvs_delete(None)", "TypeError"),
        ("kvs_read('missing')", "KeyError"),
    ],
)
def test_misuse_is_a_plain_error(flow, call, error):
    result = python(
        f"from dora_state import *; kvs_write('there', b''); {call}", DORA_STATE_DIR=str(flow)
    )
    assert result.stderr.splitlines()[-1].startswith(error)

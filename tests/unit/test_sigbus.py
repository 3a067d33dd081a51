"""I23 as Python sees it: a file that is cut under an open store raises, and the interpreter lives."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

PROGRAM = """
import faulthandler, os, sys
if {faulthandler}:
    faulthandler.enable()
from dora_state import Store
from dora_state.errors import CorruptionError

store = Store(sys.argv[1])
store["small"] = b"s" * 100
store["large"] = b"l" * 50_000
log = os.path.join(sys.argv[1], "0000000000000000.log")


def raises(call, *arguments):
    try:
        call(*arguments)
    except CorruptionError as error:
        assert "cut" in str(error), error
    else:
        raise AssertionError(call)


view = store.view("large")
os.truncate(log, 30_000)
raises(store.get, "large")
raises(store.view, "large")
raises(store.entry, "large")
raises(store.get_many, ["large"])
raises(store.put, "small", b"new")
assert store["small"] == b"s" * 100
assert bytes(view[:1000]) == b"l" * 1000
assert bytes(view[-1000:]) == bytes(1000)
print("alive", flush=True)
if {die}:
    os.kill(os.getpid(), {bus})
"""


@pytest.mark.parametrize("faulthandler", [False, True])
@pytest.mark.parametrize("die", [False, True])
def test_a_cut_file_raises_and_the_process_lives(tmp_path, faulthandler, die):
    program = PROGRAM.format(faulthandler=faulthandler, die=die, bus=int(signal.SIGBUS))
    result = subprocess.run(
        [sys.executable, "-c", program, tmp_path / "store"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert result.stdout == "alive\n", result.stderr
    assert result.returncode == (-signal.SIGBUS if die else 0)
    assert ("Bus error" in result.stderr) == (faulthandler and die)

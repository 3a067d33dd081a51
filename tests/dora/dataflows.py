"""Runs real dora dataflows, and leaves no process of theirs behind."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

MARK = "DORA_STATE_TEST_RUN"
BIN = Path(sys.executable).parent
EXAMPLE = Path(__file__).parents[2] / "examples" / "counter"


@dataclass(frozen=True)
class Result:
    code: int
    log: str

    def said(self, node: str) -> list[str]:
        """What a node has printed, line by line."""
        return re.findall(rf"^\S+ std(?:out|err) {node}: (.*)$", self.log, re.MULTILINE)


def environment(mark: str, **more: str) -> dict[str, str]:
    return {
        **os.environ,
        "PATH": f"{BIN}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        MARK: mark,
        # dora asks `uv run which` for a node's program; in a project's folder that would install the project.
        "UV_NO_PROJECT": "1",
        "UV_NO_SYNC": "1",
        "RUST_BACKTRACE": "0",
        "DORA_LOG_LEVEL": "stdout",
        **more,
    }


def run(folder: Path, *, timeout_s: float = 60, **variables: str) -> Result:
    """Runs dataflow.yml in `folder` to its end. One that does not end is killed and fails the test."""
    with start(folder, **variables) as flow:
        try:
            log, _ = flow.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            flow.kill()
            log, _ = flow.communicate()
            raise AssertionError(f"the dataflow did not end in {timeout_s} s:\n{log}") from None
    return Result(flow.returncode, log)


@contextlib.contextmanager
def start(folder: Path, **variables: str):
    """`dora run` as a process. At the end of the block everything that it started is dead."""
    mark = uuid.uuid4().hex
    flow = subprocess.Popen(
        [BIN / "dora", "run", "dataflow.yml"],
        cwd=folder,
        env=environment(mark, **variables),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    try:
        yield flow
    finally:
        with contextlib.suppress(ProcessLookupError):
            flow.kill()
        flow.wait()
        if flow.stdout:
            flow.stdout.close()
        kill_marked(mark)


def kill_marked(mark: str) -> None:
    """Kills every process that carries our mark in its environment, until there is none."""
    needle = f"{MARK}={mark}".encode()
    deadline = time.monotonic() + 10
    while pids := [pid for pid in _pids() if needle in _environ(pid)]:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        assert time.monotonic() < deadline, f"processes {pids} do not die"
        time.sleep(0.01)


def _pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def _environ(pid: int) -> bytes:
    """Empty for a process that is gone, a zombie, or not ours."""
    try:
        return Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return b""

"""A host that can be killed: host_process.py in a process of its own."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hosting import PATIENCE_S, kill


class HostProcess:
    """A host that can be killed."""

    def __init__(self, folder: Path, source: str, grace_s: float) -> None:
        operator = folder / "op.py"
        operator.write_text(textwrap.dedent(source))
        self.popen = subprocess.Popen(
            [
                sys.executable,
                str(Path(__file__).with_name("host_process.py")),
                str(operator),
                str(folder / "store"),
                str(grace_s),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            process_group=0,  # like dora
        )
        self.lines: list[dict[str, Any]] = []
        self.ended = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        assert self.popen.stdout is not None
        for line in self.popen.stdout:
            with self._changed, contextlib.suppress(json.JSONDecodeError):
                self.lines.append(json.loads(line))
                self._changed.notify_all()
        with self._changed:
            self.ended = True
            self._changed.notify_all()

    def wait(self, found: Callable[[], Any]) -> Any:
        with self._changed:
            assert self._changed.wait_for(found, PATIENCE_S), self.lines[-3:]
            return found()

    def wait_running(self, after: int = 0) -> dict[str, Any]:
        def running() -> dict[str, Any] | None:
            for line in reversed(self.lines):
                if line.get("state") == "running" and line["incarnation"] > after:
                    return line
            return None

        return self.wait(running)  # type: ignore[no-any-return]

    def wait_eof(self) -> None:
        """What dora waits for before it restarts a node."""
        self.wait(lambda: self.ended)

    def send(self, *numbers: int) -> None:
        assert self.popen.stdin is not None
        for number in numbers:
            self.popen.stdin.write(f"{number}\n")
        self.popen.stdin.flush()

    def outputs(self) -> list[str]:
        return [line["output"] for line in self.lines if "output" in line]

    def close(self) -> None:
        kill(self.popen.pid)
        self.popen.wait()
        with contextlib.suppress(BrokenPipeError):
            self.popen.stdin.close()
        self._thread.join(PATIENCE_S)
        self.popen.stdout.close()

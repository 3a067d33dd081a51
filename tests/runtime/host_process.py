"""A host as a process of its own, for tests that kill it: `python host_process.py OPERATOR STORE`.

Prints one line of JSON per status and per output, and takes one event per line of its standard
input.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from dataclasses import replace
from pathlib import Path

from hosting import EAGER

from dora_state.runtime.config import SupervisorConfig
from dora_state.runtime.supervisor import Supervisor


def say(**fields: object) -> None:
    print(json.dumps(fields), flush=True)


def main() -> int:
    config = SupervisorConfig(
        operator=Path(sys.argv[1]),
        policy=replace(EAGER, max_event_attempts=int(os.environ.get("EVENT_ATTEMPTS", "0"))),
        durability="process",
        shutdown_grace_s=float(sys.argv[3]) if len(sys.argv) > 3 else 5.0,
        queue_sizes={"in": 1_000_000},
        adopts=True,
    )
    supervisor = Supervisor(
        config,
        lambda output: say(output=bytes(output.value).decode()),
        publish=lambda status: say(zygote=supervisor.workers.births.zygote_pid, **status),
    )
    signal.signal(signal.SIGTERM, lambda *_: supervisor.request_stop())
    signal.set_wakeup_fd(supervisor.wakeup_fd, warn_on_full_buffer=False)

    def feed() -> None:
        for line in sys.stdin:
            supervisor.submit(
                {"type": "INPUT", "id": "in", "value": line.strip().encode(), "metadata": {}}
            )

    supervisor.load()
    supervisor.start(Path(sys.argv[2]))
    threading.Thread(target=feed, daemon=True).start()
    outcome = supervisor.run()
    say(clean=outcome.clean, why=outcome.why)
    return 0


if __name__ == "__main__":
    sys.exit(main())

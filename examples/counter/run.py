"""Runs the example: python3 examples/counter/run.py [--seconds 20] [--kills 20] [--seed N]

Needs nothing but Python and a C compiler; what else it uses goes into a virtual environment in the repository. Ends
with the line of the ledger, and with exit code 0 only if the ledger is exact.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

HERE = Path(__file__).resolve().parent
VERDICT = re.compile(r"events \d+, crashes \d+, lost \d+, twice \d+, restart p50 \S+ ms p99 \S+ ms")
NODE_SAID = re.compile(r"\S+ std(out|err) ")
START_AND_STOP_S = 90


def main(folder: Path = HERE) -> int:
    parser = argparse.ArgumentParser(
        description="An operator is killed and comes back with its state."
    )
    parser.add_argument("--seconds", type=float, default=20, help="length of the run (default 20)")
    parser.add_argument("--kills", type=int, default=20, help="how often the operator is killed")
    parser.add_argument("--seed", type=int, help="for the moments of the kills; default: random")
    options = parser.parse_args()

    sys.path.insert(0, str(HERE.parent.parent / "tools"))
    import environment

    environment.create()
    environment.install_package("dora")
    settings = {
        "COUNTER_SECONDS": str(options.seconds),
        "COUNTER_KILLS": str(options.kills),
        "COUNTER_SEED": "" if options.seed is None else str(options.seed),
    }
    return run(
        environment.program("dora"),
        {**environment.variables(), **settings},
        options.seconds + START_AND_STOP_S,
        folder,
    )


def run(dora: str, variables: dict[str, str], patience_s: float, folder: Path = HERE) -> int:
    """Runs the dataflow of a folder, shows what its nodes say, and returns the exit code of the example."""
    process = subprocess.Popen(
        [dora, "run", "dataflow.yml", "--log-level", "stdout"],
        cwd=folder,
        env=variables,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    hung = threading.Timer(patience_s, os.killpg, (process.pid, signal.SIGKILL))
    hung.start()
    lines = []
    try:
        assert process.stdout
        for line in process.stdout:
            lines.append(line)
            if (said := NODE_SAID.match(line)) and not VERDICT.search(line):
                print(line[said.end() :], end="", flush=True)
        code = process.wait()
    except BaseException:
        process.send_signal(signal.SIGINT)  # dora stops its nodes
        process.wait()
        raise
    finally:
        hung.cancel()
    # dora's exit code says how the sink has judged; but a run without a judgement is worth no more than a bad one.
    verdicts = VERDICT.findall("".join(lines))
    if code or len(verdicts) != 1 or "lost 0, twice 0" not in verdicts[0]:
        print("".join(lines), f"the run failed: dora's exit code is {code}", sep="", flush=True)
        return 1
    print(verdicts[0], flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

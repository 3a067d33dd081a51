"""Runs the example: python3 examples/chain/run.py [--seconds 20] [--kills 20] [--seed N]

The counter's, with this folder's dataflow.
"""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "counter"))

import run  # noqa: E402

if __name__ == "__main__":
    sys.exit(run.main(HERE))

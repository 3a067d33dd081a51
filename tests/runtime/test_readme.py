"""What README.md and docs/operators.md show a newcomer runs as it is printed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]


def snippets(document: str, has: str) -> list[str]:
    """The Python in a document that mentions something."""
    text = (REPOSITORY / document).read_text()
    return [each for each in re.findall(r"^```python\n(.*?)^```", text, re.S | re.M) if has in each]


@pytest.fixture
def folder(tmp_path):
    """Where a newcomer would try it: with the operator of README.md in it."""
    pytest.importorskip("dora")
    (operator,) = snippets("README.md", "restore_state")
    (tmp_path / "counter.py").write_text(operator)
    return tmp_path


def run(folder: Path, *arguments: str, **variables: str) -> str:
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=os.environ | variables,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("document", ["README.md", "docs/operators.md"])
def test_the_operator_is_hosted_by_a_program(folder, document):
    (program,) = snippets(document, "\nwith OperatorHost(")
    (folder / "program.py").write_text(program + "    print(host.status['state'])\n")
    assert run(folder, "program.py").splitlines()[-1] == "running"


@pytest.mark.parametrize("document", ["README.md", "docs/operators.md"])
def test_the_crash_test_of_the_operator_passes(folder, document):
    (example,) = snippets(document, "run_operator")
    (folder / "test_counter.py").write_text(example)
    assert "1 passed" in run(
        folder, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_counter.py"
    )


def test_the_shared_store_answers_as_shown(folder):
    (calls,) = snippets("README.md", "kvs_wait(")
    (folder / "node.py").write_text(calls + 'print(kvs_read("pieces"), kvs_read("map/origin"))\n')
    assert run(folder, "node.py", DORA_STATE_DIR=str(folder / "state")) == "b'1' b'...'\n"


def test_a_store_opens_as_shown(folder):
    (opens,) = snippets("README.md", "with Store(")
    (folder / "store.py").write_text(opens + 'print(Store("robot")["pose"])\n')
    assert run(folder, "store.py") == "b'...'\n"


@pytest.mark.parametrize("document", ["README.md", "docs/operators.md"])
def test_the_typed_state_is_declared_as_shown(folder, document):
    declared = snippets(document, "from dora_state import state\n")[0]
    (folder / "typed.py").write_text(declared + "print(Operator().count)\n")
    assert run(folder, "typed.py") == "0\n"

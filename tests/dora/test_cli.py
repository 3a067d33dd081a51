"""Bad input on the real command line: what is wrong, what to do, exit code 2, and nothing changed."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import dataflows
import pytest

GOOD = "class Operator:\n    def on_event(self, event, send_output):\n        pass\n"


def command(
    folder: Path, *arguments: object, node: str = "", **variables: str
) -> subprocess.CompletedProcess[str]:
    """`dora-state` as a person, or with `node` dora, starts it."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if "DORA" not in name and name != "PYTHONDONTWRITEBYTECODE"
    }
    if node:
        environment["DORA_NODE_CONFIG"] = node
    return subprocess.run(
        [dataflows.BIN / "dora-state", *map(str, arguments)],
        cwd=folder,
        env={**environment, **variables},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        stdin=subprocess.DEVNULL,
    )


NODE = """
dataflow_id: 01a20ba4-cd01-7d6e-abbd-0fab71a6884d
node_id: counter
run_config: {inputs: {}, outputs: []}
dataflow_descriptor: {nodes: []}
restart_count: 0
"""


@pytest.fixture
def operator(flow) -> Path:
    file = flow / "op.py"
    file.write_text(GOOD)
    return file


def listing(folder: Path) -> list[tuple[str, bytes]]:
    """Everything in the folder and in its neighbour, where the notes of the runs are."""
    return sorted(
        (str(path.relative_to(folder.parent)), path.read_bytes() if path.is_file() else b"")
        for path in folder.parent.rglob("*")
    )


def refuse(folder: Path, *arguments: object, error: str, hint: str = "", node: str = NODE) -> None:
    """The command fails with exactly one error line, at most one hint, and changes nothing."""
    before = listing(folder)
    result = command(folder, *arguments, node=node)
    lines = result.stderr.splitlines()
    assert result.returncode == 2, result.stderr
    assert lines[0].startswith("error: ")
    assert error in lines[0]
    assert len(lines) == (2 if hint else 1), result.stderr
    if hint:
        assert lines[1].startswith("hint: ")
        assert hint in lines[1]
    assert result.stdout == ""
    assert listing(folder) == before


def test_version_and_help(flow):
    assert command(flow, "--version").stdout.startswith("dora-state 0.")
    for arguments in (["--help"], ["run", "--help"], ["run", "-h"]):
        result = command(flow, *arguments)
        assert result.returncode == 0
        assert "Usage: dora-state" in result.stdout


@pytest.mark.parametrize("arguments", [[], ["fly"], ["--fly"]])
def test_an_unknown_command_is_refused(flow, arguments):
    result = command(flow, *arguments)
    assert result.returncode == 2
    assert result.stderr


def test_no_operator(flow):
    refuse(flow, "run", error="Missing argument 'OPERATOR.py'", hint="dora-state run --help")


def test_a_missing_operator_file(flow):
    refuse(
        flow,
        "run",
        "nix.py",
        error="operator file nix.py does not exist",
        hint=f"relative to {flow}",
    )


def test_a_folder_as_operator(flow):
    (flow / "op.py").mkdir()
    refuse(flow, "run", "op.py", error="op.py is not an operator file", hint="class Operator")


def test_an_operator_that_is_not_python(flow):
    (flow / "op.so").touch()
    refuse(flow, "run", "op.so", error="op.so is not an operator file", hint="class Operator")


@pytest.mark.parametrize(
    ("source", "error"),
    [
        ("x = 1\n", "has no class Operator"),
        ("class Operator:\n    pass\n", "on_event"),
        ("def broken(:\n", "SyntaxError"),
        ("import a_module_that_is_not_there\n", "a_module_that_is_not_there"),
        ("import helper\n", "has no class Operator"),
        ("raise RuntimeError('not today')\n", "not today"),
        ("import sys; sys.exit(0)\n", "SystemExit"),
    ],
)
def test_an_operator_file_that_cannot_be_used(flow, source, error):
    (flow / "op.py").write_text(source)
    (flow / "helper.py").touch()
    before = listing(flow)
    result = command(flow, "run", "op.py", node=NODE)
    assert result.returncode == 2, result.stderr
    assert error in result.stderr
    assert "error: " in result.stderr
    assert "op.py" in result.stderr
    assert listing(flow) == before


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--restart-policy", "sometimes"),
        ("--max-restarts", "-1"),
        ("--max-restarts", "many"),
        ("--restart-delay", "-0.1"),
        ("--restart-window", "nan"),
        ("--max-restart-delay", "x"),
        ("--exhausted", "panic"),
        ("--degraded-retry", "-1"),
        ("--durability", "eternal"),
        ("--shutdown-grace", "-1"),
        *(
            (f"--{name}", value)
            for name in (
                "restart-delay",
                "max-restart-delay",
                "restart-window",
                "degraded-retry",
                "shutdown-grace",
            )
            for value in ("inf", "1e10", "1e300")
        ),
        ("--standby", "maybe"),
    ],
)
def test_a_wrong_value_of_an_option(operator, flow, option, value):
    refuse(flow, "run", "op.py", option, value, error=option, hint=" ")


def test_an_unknown_option(operator, flow):
    refuse(flow, "run", "op.py", "--fly", error="--fly", hint="dora-state run --help")


def test_keep_and_fresh(operator, flow):
    refuse(
        flow,
        "run",
        "op.py",
        "--keep",
        "--fresh",
        error="--keep and --fresh exclude",
        hint="use one",
    )


def test_without_dora(operator, flow):
    refuse(
        flow, "run", "op.py", error="DORA_NODE_CONFIG is not set", hint="path: dora-state", node=""
    )


@pytest.mark.parametrize("config", ["[", "nodes: []", "7", "dataflow_id: {}"])
def test_a_configuration_that_is_not_doras(operator, flow, config):
    refuse(flow, "run", "op.py", error="DORA_NODE_CONFIG", hint="dora", node=config)


def test_a_state_directory_of_something_else(operator, flow):
    (flow / "state").mkdir()
    (flow / "state" / "thesis.tex").touch()
    refuse(flow, "run", "op.py", error="state is not a state directory", hint="--state-dir")


def test_a_state_directory_of_unknown_format(operator, flow):
    (flow / "state").mkdir()
    (flow / "state" / ".dora-state").write_text('{"format": 99}')
    refuse(flow, "run", "op.py", error="format 99", hint="use the dora-state that wrote it")


def test_a_state_directory_that_cannot_be_made(operator, flow):
    refuse(
        flow, "run", "op.py", "--state-dir", "op.py/x", error="Not a directory", hint="--state-dir"
    )


def test_a_place_that_is_a_file_behind_folders_that_are_not_there(operator, flow):
    refuse(
        flow,
        "run",
        "op.py",
        "--state-dir",
        "a/b/c/../../../op.py",
        error="File exists",
        hint="--state-dir",
    )


@pytest.mark.parametrize("options", [[], ["--fresh"]])
@pytest.mark.parametrize("store", ["counter", "shared"])
def test_a_store_that_is_not_one(operator, flow, store, options):
    (flow / "state" / store).mkdir(parents=True)
    (flow / "state" / ".dora-state").write_text('{"format": 1}')
    (flow / "state" / store / "thesis.tex").write_text("years of work")
    path = flow / "state" / store
    refuse(flow, "run", "op.py", *options, error=str(path), hint=f"move {path} away")


def test_an_immediate_output_that_the_node_does_not_have(operator, flow):
    node = NODE.replace("outputs: []", "outputs: [image, count]")
    refuse(
        flow,
        "run",
        "op.py",
        *("--immediate", "count", "--immediate", "imagee"),
        error="--immediate imagee: node counter has no such output",
        hint="count, image",
        node=node,
    )

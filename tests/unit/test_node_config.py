"""What DORA_NODE_CONFIG tells."""

from __future__ import annotations

import pytest

from dora_state import node_config
from dora_state.errors import OperatorError

CONFIG = """
dataflow_id: 01a2
node_id: counter
run_config:
  inputs:
    plain: a/b
    sized: {source: a/b, queue_size: 3}
    freshest: {source: a/b, queue_size: 1, queue_policy: drop-oldest}
    patient: {source: a/b, queue_size: 50, queue_policy: backpressure}
    impatient: {source: a/b, queue_policy: backpressure}
  outputs: [count, image]
daemon_communication: !Tcp
  socket_addr: 127.0.0.1:1
dataflow_descriptor:
  nodes: [{id: counter, path: dora-state}]
"""


def test_the_bounds_of_the_inputs_are_doras(monkeypatch):
    monkeypatch.setenv("DORA_NODE_CONFIG", CONFIG)
    config = node_config.read()
    assert (config.dataflow_id, config.node_id) == ("01a2", "counter")
    assert config.descriptor == {"nodes": [{"id": "counter", "path": "dora-state"}]}
    assert config.outputs == {"count", "image"}
    assert config.queue_sizes == {
        "plain": 10,
        "sized": 3,
        "freshest": 1,
        "patient": 500,
        "impatient": 100,
    }


@pytest.mark.parametrize(
    ("nodes", "keeps"),
    [
        ("{id: a, path: dora-state, args: run a.py}", False),
        (
            "{id: a, path: dora-state, args: run a.py}, {id: b, path: dora-state, args: run b.py --keep}",
            True,
        ),
        ("{id: a, path: /opt/bin/dora-state, args: '--keep'}, {id: b, path: b.py}", True),
        ("{id: a, path: a.py, args: --keep}", False),
    ],
)
def test_one_operator_that_keeps_state_is_known_to_all_nodes(monkeypatch, nodes, keeps):
    text = CONFIG.replace("{id: counter, path: dora-state}", nodes)
    monkeypatch.setenv("DORA_NODE_CONFIG", text)
    assert node_config.read().keeps is keeps


def test_a_process_that_dora_did_not_start_has_none(monkeypatch):
    monkeypatch.delenv("DORA_NODE_CONFIG", raising=False)
    assert node_config.read() is None


@pytest.mark.parametrize(
    "text", ["[", "just text", "node_id: x", "dataflow_id: 1\nnode_id: 2\nrun_config: 3"]
)
def test_what_is_not_doras_is_refused(monkeypatch, text):
    monkeypatch.setenv("DORA_NODE_CONFIG", text)
    with pytest.raises(OperatorError, match="DORA_NODE_CONFIG"):
        node_config.read()

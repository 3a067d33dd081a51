"""What dora tells a node about itself, in the environment variable DORA_NODE_CONFIG."""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass
from typing import Any

from .errors import OperatorError

DEFAULT_QUEUE_SIZE = 10


@dataclass(frozen=True)
class NodeConfig:
    dataflow_id: str
    node_id: str
    state_dirs: tuple[str, ...]
    """What the dataflow's file says about where state lives, by --state-dir of `dora-state run` or by DORA_STATE_DIR,
    each once. A node that starts before the operators do finds their shared store by this."""
    keeps: bool
    """Whether it starts an operator with --keep. Whoever comes first then leaves the shared store as it is."""
    outputs: frozenset[str]
    """The ids of this node's outputs."""
    queue_sizes: dict[str, int]
    """How many events dora keeps for each of this node's inputs before it drops the oldest."""
    descriptor: Any
    """The dataflow's file, parsed."""


def read() -> NodeConfig | None:
    """The configuration of this node; None in a process that dora did not start."""
    text = os.environ.get("DORA_NODE_CONFIG")
    if not text:
        return None
    config = _parse(text)
    try:
        descriptor = config.get("dataflow_descriptor") or {}
        nodes = descriptor.get("nodes") or []
        run_config = config.get("run_config") or {}
        found = dict.fromkeys(place for node in nodes if (place := _state_dir(node)))
        return NodeConfig(
            dataflow_id=str(config["dataflow_id"]),
            node_id=str(config["node_id"]),
            state_dirs=tuple(found),
            keeps=any("--keep" in _words(node) for node in nodes),
            outputs=frozenset(map(str, run_config.get("outputs") or ())),
            queue_sizes=_queue_sizes(run_config),
            descriptor=descriptor,
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise OperatorError(
            f"DORA_NODE_CONFIG is not what dora 1.1 writes ({error!r} in it); use a dora-rs of version 1"
        ) from error


def _parse(text: str) -> Any:
    import yaml  # comes with dora-rs, and only a process that dora started gets here

    class Loader(yaml.SafeLoader):  # type: ignore[misc]
        """Reads plain data, and None for the tagged values that dora writes for its own library."""

    Loader.add_multi_constructor("!", lambda loader, tag, node: None)
    try:
        return yaml.load(text, Loader)
    except yaml.YAMLError as error:
        problem = " ".join(str(error).split())
        raise OperatorError(
            f"DORA_NODE_CONFIG is not YAML ({problem}); let dora 1.1 start this node"
        ) from error


def _state_dir(node: dict[str, Any]) -> str | None:
    """Where this node of the dataflow file keeps state, if the file says so."""
    words = _words(node)
    for position, word in enumerate(words):
        if word == "--state-dir" and position + 1 < len(words):
            return words[position + 1]
        if word.startswith("--state-dir="):
            return word.partition("=")[2]
    place = (node.get("env") or {}).get("DORA_STATE_DIR")
    return None if place is None else str(place)


def _words(node: dict[str, Any]) -> list[str]:
    """The arguments of a node that hosts an operator."""
    return shlex.split(node.get("args") or "") if _is_host(node) else []


def _queue_sizes(run_config: dict[str, Any]) -> dict[str, int]:
    inputs = (run_config.get("inputs") or {}).items()
    return {
        name: _queue_size(source if isinstance(source, dict) else {}) for name, source in inputs
    }


def _queue_size(source: dict[str, Any]) -> int:
    size = int(source.get("queue_size") or DEFAULT_QUEUE_SIZE)
    # Not without a bound: this is where dora drops as well, by its `effective_cap`.
    return max(10 * size, 100) if source.get("queue_policy") == "backpressure" else size


def _is_host(node: dict[str, Any]) -> bool:
    return os.path.basename(str(node.get("path") or "")) == "dora-state"

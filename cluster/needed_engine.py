"""Which nodes can run a model that only one engine runs, and what to say if there is none."""

from __future__ import annotations

from cluster.topology import Topology

_MOST_NAMED = 8
_REMEDIES = {
    "mlx": "install it with `pip install -e '.[mlx]'`, or pick a GGUF file of this model",
    "llamacpp": "it comes with exobus on Linux and macOS: start a node there, or pick another model",
}


def nodes_with_engine(topology: Topology, engine: str) -> frozenset[str]:
    """Return the ids of the nodes that have an engine; of all nodes if none is named."""
    return frozenset(node.node_id for node in topology.nodes if not engine or node.capabilities.has(engine))


def no_engine(model_id: str, family: str, engine: str, topology: Topology) -> str:
    """Return the sentence for a model that needs an engine which no node has."""
    used = [f"{node.name} uses {node.capabilities.engine or 'none yet'}" for node in topology.nodes[:_MOST_NAMED]]
    more = [f"{rest} more"] if (rest := len(topology.nodes) - len(used)) > 0 else []
    return (
        f"of the engines, only {engine} may run {model_id} (family {family}), and no node has it:"
        f" {', '.join(used + more)}; {_REMEDIES.get(engine, 'pick another model')}"
    )

"""Models as text, from what a gateway reports of models and topology. Asks nobody."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from cli.text import show_bytes, show_seconds, table
from cluster.capabilities import DeviceCapabilities
from cluster.needed_engine import no_engine, nodes_with_engine
from cluster.partitioning import RingMemoryWeightedPartitioningStrategy
from cluster.placement import DoesNotFit, Instance, PlacedStage
from cluster.room import InstanceUse, LoadedInstance, can_place, freed, to_end
from cluster.shard import Shard, whole
from cluster.topology import Topology
from engines.cuts import ModelPlan, able_nodes, plan_model, stage_starts, why_whole
from models.card import FolderSource, ModelCard, PackedSizes
from models.weights.memory import named_bits, weight_bytes

Json = Mapping[str, Any]
NOWHERE = DeviceCapabilities()
"""A node of which nothing is known: it counts as one that holds float32."""

_SIZES = (
    "family", "n_layers", "hidden_size", "n_heads", "n_kv_heads", "head_dim", "vocab_size", "context_length",
    "layer_bytes", "embedding_bytes", "size_bytes", "tied_embedding", "engine",
)  # fmt: skip


def card_from(model: Json) -> ModelCard:
    """Return the card that a gateway reports, without its source."""
    sizes = {name: model[name] for name in _SIZES if model.get(name) is not None}
    packed = msgspec.convert(model.get("packed"), PackedSizes | None)
    return ModelCard(id=model["id"], source=FolderSource(Path()), packed=packed, **sizes)


def topology_from(body: Json) -> Topology:
    """Return the topology that a gateway reports."""
    return msgspec.convert({"nodes": body["nodes"], "links": body["links"]}, Topology)


def own_node(body: Json) -> DeviceCapabilities:
    """Return what the node that reported the topology can do."""
    found = topology_from(body).node(body["node_id"])
    return found.capabilities if found else NOWHERE


def loaded_from(body: Json) -> tuple[LoadedInstance, ...]:
    """Return the instances that a gateway reports, with their use."""
    return tuple(_loaded_instance(instance) for instance in body["instances"])


def _loaded_instance(body: Json) -> LoadedInstance:
    shards = [(stage["start_layer"], stage["end_layer"], stage["n_layers"]) for stage in body["stages"]]
    stages = tuple(
        PlacedStage(stage["node_id"], Shard(body["model"], *shard))
        for stage, shard in zip(body["stages"], shards, strict=True)
    )
    use = InstanceUse(body["idle_s"], tuple(stage["frees"] for stage in body["stages"]))
    return LoadedInstance(Instance(body["instance_id"], body["model"], body["epoch"], stages), use)


def placed_in_room(
    card: ModelCard, topology: Topology, loaded: Iterable[LoadedInstance], context: int = 0
) -> tuple[ModelPlan, tuple[str, ...]]:
    """Divide a model as `placed` does, and name the idle models that are unloaded before. Raises DoesNotFit."""
    ended = to_end(topology, loaded, partial(can_place, partial(placed, card, context=context))) or ()
    return placed(card, freed(topology, ended), context), tuple(one.instance.model_id for one in ended)


def placed(card: ModelCard, topology: Topology, context: int = 0) -> ModelPlan:
    """Divide a model as the placer does, for a chat of `context` positions. Raises DoesNotFit."""
    able = able_nodes(card, topology)
    if not able.nodes:
        raise DoesNotFit(no_engine(card.id, card.family, card.engine, topology))
    return plan_model(card, able, RingMemoryWeightedPartitioningStrategy(), stage_starts(card, able), context)


def fits(model: Json, topology: Topology, loaded: Sequence[LoadedInstance]) -> str:
    """Return whether a model can run now, if need be after idle ones were unloaded.

    It is `yes`, `no`, `needs mlx`, or `?` before its sizes are known.
    """
    if any(one.instance.model_id == model["id"] for one in loaded):
        return "yes"
    if not nodes_with_engine(topology, model.get("engine") or ""):
        return f"needs {model['engine']}"
    if not model.get("n_layers"):
        return "?"
    try:
        placed_in_room(card_from(model), topology, loaded)
    except DoesNotFit:
        return "no"
    return "yes"


def list_of(models: Sequence[Json], topology: Json) -> str:
    """Format the catalogue: sizes, whether a model fits, and how much of it is here."""
    here, loaded, graph = loaded_models(topology), loaded_from(topology), topology_from(topology)
    rows = [
        (
            model["id"],
            model.get("params") or "-",
            show_bytes(model["size_bytes"]) if model.get("size_bytes") else "-",
            f"{model['context_length']}" if model.get("context_length") else "-",
            fits(model, graph, loaded),
            _here(model, here),
        )
        for model in models
    ]
    return table(("MODEL", "PARAMS", "SIZE", "CONTEXT", "FITS", "HERE"), rows)


def loaded_of(topology: Json) -> str:
    """Format the models that are loaded: on which nodes, and for how long none has asked for them."""
    rows = [
        (
            instance["model"],
            ", ".join(stage["node"] or stage["node_id"] for stage in instance["stages"]),
            show_seconds(instance["idle_s"]) if instance["idle_s"] else "in use",
        )
        for instance in topology["instances"]
    ]
    return table(("LOADED", "NODES", "IDLE"), rows)


def loaded_models(topology: Json) -> frozenset[str]:
    """Return the ids of the models that are loaded."""
    return frozenset(instance["model"] for instance in topology["instances"])


def details_of(model: Json, node: DeviceCapabilities = NOWHERE) -> str:
    """Format all that is known of one model, with the memory that it takes on a node."""
    rows = [("name", model.get("name") or "-"), ("aliases", ", ".join(model["aliases"]) or "-")]
    rows += [("source", model["from"]), ("license", model.get("license") or "-")]
    only = f" (only by the engine {model['engine']})" if model.get("engine") else ""
    rows += [("architecture", f"{model['family'] or '?'}{only}")]
    if model.get("n_layers"):
        card = card_from(model)
        layers = whole(card.id, card.n_layers)
        memory = f"{show_bytes(weight_bytes(card, layers, node))} for weights, "
        memory += f"{show_bytes(card.kv_bytes(layers, 1024))} for each 1,024 positions of a chat"
        shape = f"{card.n_layers} layers of {card.hidden_size}, {card.n_heads} heads ({card.n_kv_heads} of keys)"
        rows += [("shape", f"{shape}, {card.vocab_size} tokens"), ("context", f"{card.context_length} positions")]
        rows += [("files", show_bytes(card.size_bytes)), ("memory", memory)]
    rows += [("on disk", show_bytes(model["downloaded_bytes"]))] if model.get("downloaded_bytes") else []
    rows += [("chosen", model["why"])] if model.get("why") else []
    return table(("MODEL", model["id"]), rows)


def plan_rows(model: Json, topology: Json, context: int = 0) -> list[dict[str, Any]]:
    """Return which node would hold which layers and how much memory, or holds them already. Raises DoesNotFit.

    `quantized_bits` is to how many bits a node rounds float matrices; 0 if it rounds none.
    """
    card, graph = card_from(model), topology_from(topology)
    nodes = {node.node_id: node for node in graph.nodes}
    held = [instance["stages"] for instance in topology["instances"] if instance["model"] == card.id]
    if held:
        stages = [
            (stage["node_id"], Shard(card.id, stage["start_layer"], stage["end_layer"], card.n_layers))
            for stage in held[-1]
        ]
        bits = [stage.get("quantized_bits", 0) for stage in held[-1]]
    else:
        planned, _ = placed_in_room(card, graph, loaded_from(topology), context)
        stages = [(stage.node_id, stage.shard) for stage in planned.stages]
        bits = [named_bits(card, shard, nodes[node].capabilities, planned.auto_bits) for node, shard in stages]
    return [
        {
            "node": nodes[node_id].name,
            "start_layer": shard.start_layer,
            "end_layer": shard.end_layer,
            "bytes": weight_bytes(card, shard, nodes[node_id].capabilities, rounded)
            + card.kv_bytes(shard, min(context, card.context_length)),
            "quantized_bits": rounded,
            "loaded": bool(held),
        }
        for (node_id, shard), rounded in zip(stages, bits, strict=True)
    ]


def plan_of(model: Json, topology: Json, context: int = 0) -> str:
    """Format `plan_rows`, after why a quantization was chosen and why the model is not split. Raises DoesNotFit."""
    rows = [
        (
            row["node"],
            f"{row['start_layer']}-{row['end_layer'] - 1}",
            f"{row['end_layer'] - row['start_layer']}",
            show_bytes(row["bytes"]),
            f"{row['quantized_bits'] or '-'}",
            "loaded" if row["loaded"] else "would load",
        )
        for row in plan_rows(model, topology, context)
    ]
    card = card_from(model)
    reasons = [model.get("why"), why_whole(card, able_nodes(card, topology_from(topology)))]
    if context > card.context_length:
        reasons.append(f"its context ends at {card.context_length} positions, which are counted in place of {context}")
    why = "".join(f"{model['id']}: {reason}\n\n" for reason in reasons if reason)
    columns = ("NODE", "LAYERS", "COUNT", "MEMORY", "BITS", "STATE")
    return why + table(columns, rows) + _unloaded_before(model, topology, context)


def _unloaded_before(model: Json, topology: Json, context: int) -> str:
    """Return the line that names the idle models that give way to one, if there are any."""
    if model["id"] in loaded_models(topology):
        return ""
    _, names = placed_in_room(card_from(model), topology_from(topology), loaded_from(topology), context)
    return f"\n\nidle models that are unloaded before: {', '.join(names)}" if names else ""


def _here(model: Json, loaded: frozenset[str]) -> str:
    """Return `loaded`, `own` for a folder of this machine, how much of a model is on disk, or `-`."""
    if model["id"] in loaded:
        return "loaded"
    if model.get("own"):
        return "own"
    here, size = model.get("downloaded_bytes") or 0, model.get("size_bytes") or 0
    return "-" if not here else "disk" if here >= size else f"{100 * here // size} %"

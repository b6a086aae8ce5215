"""Where a model may be cut, by the engines of the nodes that run it, and how it is laid over them. Imports no engine.

`plan_model` is the one way from a card to the stages of a ring, for the placer and for `exobus models plan`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from types import MappingProxyType
from typing import NamedTuple

from cluster.needed_engine import nodes_with_engine
from cluster.own_models import only_nodes
from cluster.partitioning import PartitioningStrategy
from cluster.placement import DoesNotFit, PlacedStage, plan
from cluster.topology import Topology
from engines.llamacpp.cut_table import stage_starts as llamacpp_starts
from models.card import ModelCard
from models.weights.memory import AUTO_BITS, least_bytes

WHOLE = (0,)
"""Where the stages of a model begin that runs whole."""

_PASSES_MORE = "its layers pass on more than hidden states"
UNSPLIT_BY_MLX: Mapping[str, str] = MappingProxyType(
    {
        "afm7": "its last layers use keys and values of an earlier one",
        "deepseek_v41": _PASSES_MORE,
        "gemma3n": _PASSES_MORE,
        "gemma4": _PASSES_MORE,
        "gemma4_text": _PASSES_MORE,
        "hunyuan": _PASSES_MORE,
        "iquestloopcoder": "its layers are not called as a whole",
        "kimi_k3": _PASSES_MORE,
        "muse_spark": _PASSES_MORE,
        "rwkv7": _PASSES_MORE,
        "talkie": "its layers use the embedding as well",
    }
)
"""The families that MLX runs whole only, by `model_type`, with the reason.

They are those of mlx-lm 0.32.2 whose parts `engines.mlx` refuses. That was found by loading parts of tiny models in the
configurations of mlx-lm's own tests, and of what its sources show to share more than hidden states. Such a model of a
family that is not here is found by its first ring, which is refused with NotInParts.
"""


class ModelPlan(NamedTuple):
    """The stages of a model, and to how many bits those with `--quantize auto` round its float matrices."""

    stages: tuple[PlacedStage, ...]
    auto_bits: int


def plan_model(
    card: ModelCard, topology: Topology, strategy: PartitioningStrategy, starts: Sequence[int], positions: int = 0
) -> ModelPlan:
    """Lay a model over nodes for a chat of `positions` positions, with the most bits that fit. Raises DoesNotFit.

    One number of bits holds for the whole ring, because else the text would depend on which node had room. `starts`
    are the layers at which a stage may begin.
    """

    def rounded(bits: int) -> ModelPlan:
        need = partial(least_bytes, card, positions=positions, auto_bits=bits)
        return ModelPlan(plan(topology, strategy, card.id, card.n_layers, need, card.head_layers, starts), bits)

    *more, least = AUTO_BITS
    for bits in more:
        with suppress(DoesNotFit):
            return rounded(bits)
    return rounded(least)


def stage_starts(card: ModelCard, topology: Topology) -> Sequence[int]:
    """Return the layers at which a stage of a model may begin on these nodes, in order."""
    if why_whole(card, topology):
        return WHOLE
    return llamacpp_starts(card.family, card.n_layers) if _on_llamacpp(card, topology) else range(card.n_layers)


def why_whole(card: ModelCard, topology: Topology) -> str:
    """Return why these nodes cannot split a model, as a sentence; "" if they can."""
    if card.engine == "mlx":
        reason = UNSPLIT_BY_MLX.get(card.family)
        return f"MLX runs models of the family {card.family!r} on one node only: {reason}" if reason else ""
    if _on_llamacpp(card, topology) and len(llamacpp_starts(card.family, card.n_layers)) == 1:
        sizes = f"{card.family!r} models of {card.n_layers} layers"
        return f"llama.cpp runs {sizes} on one node only: in parts they may give other numbers"
    return ""


def able_nodes(card: ModelCard, topology: Topology) -> Topology:
    """Return the topology of the nodes that a model is placed on: those with its engine.

    A node that runs every model on llama.cpp is left out if that cannot split this one and other nodes can.
    """
    able = nodes_with_engine(topology, card.engine)
    members = only_nodes(topology, able)
    others = able - _on_llamacpp(card, members)
    return only_nodes(members, others) if others and why_whole(card, members) else members


def _on_llamacpp(card: ModelCard, topology: Topology) -> frozenset[str]:
    """Return the nodes that run a model on llama.cpp because it, or their settings, leave no choice."""
    if card.engine:
        return frozenset(topology.node_ids if card.engine == "llamacpp" else ())
    return frozenset(node.node_id for node in topology.nodes if node.capabilities.engine == "llamacpp")

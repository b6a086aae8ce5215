"""Which tensors of a checkpoint a shard needs, judged by their names alone. Knows no family and reads no file."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable

from cluster.shard import Shard

_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)\.")
_SENSES = re.compile(r"(?:^|[._])(?:vision|visual|audio)")  # parts of a model that also sees or hears, without text
_EMBEDDING = re.compile(r"embed|\.wte\.|\.wpe\.")
_EXPERT = ".experts."  # only their names are looked at, and they are most of a model
_HEAD = re.compile(r"(?:^|\.)lm_head\.")


def layer_of(name: str) -> int | None:
    """Return the number of the layer that a tensor belongs to, None for one outside of the layers."""
    found = _LAYER.search(name)
    return int(found[1]) if found else None


def kind_of(name: str) -> str:
    """Return what the tensors of this name in other layers and experts have in common with it."""
    return re.sub(r"\d+", "#", name)


def has_head(names: Iterable[str]) -> bool:
    """Return whether one of the tensors is a head of its own, so that the embedding does not serve as one."""
    return any(_HEAD.search(name) for name in names)


def needed_names(shard: Shard, names: Collection[str]) -> tuple[str, ...]:
    """List the tensors that a shard needs, of a checkpoint that has `names`, for a model without a description.

    These are the tensors of its layers, for the first stage the embeddings, and for the last one everything else; the
    embeddings too unless there is a head of its own. Of each kind of tensor that its layers lack there is one as well,
    by the shape of which mlx-lm sees what the authors wrote. What sees or hears, and layers beyond the last, are
    needed by none.
    """
    text = sorted(name for name in names if not _SENSES.search(name))
    tied = not has_head(text)
    found = [name for name in text if _needed(name, shard, tied)]
    kinds = {kind_of(name) for name in found}
    for name in text:
        layer, kind = layer_of(name), kind_of(name)
        if layer is not None and layer < shard.n_layers and kind not in kinds and _EXPERT not in name:
            found.append(name)
            kinds.add(kind)
    return tuple(found)


def _needed(name: str, shard: Shard, tied: bool) -> bool:
    if (layer := layer_of(name)) is not None:
        return layer in shard.layers
    if _EMBEDDING.search(name):
        return shard.is_first or (shard.is_last and tied)
    return shard.is_last

"""Where the tensors of a model are stored in the files of its family, by canonical name. Reads no file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import msgspec

from cluster.shard import Shard
from models.architecture import Architecture
from models.errors import WeightsError
from models.families import FAMILIES
from models.weights.checkpoint import Shape, tensor_shapes
from models.weights.stored import StoredT, StoredTensor, rows_of

_IN_LAYER = re.compile(r"(model\.layers\.\d+\.)(.+)\.(\w+)")


class Place(msgspec.Struct, frozen=True):
    """A tensor is `rows` rows from `start` on of a stored one of this shape, or several such ones, stacked."""

    names: tuple[str, ...]
    shape: Shape
    start: int
    rows: int


def places(architecture: Architecture, shard: Shard, *, single_experts: bool = False) -> dict[str, Place]:
    """Map the canonical names that a shard needs to where its family stores them, under checkpoint names.

    With `single_experts` each expert has tensors of its own.
    """
    shapes = tensor_shapes(architecture, shard)
    fused = {part: (whole, parts) for whole, parts in FAMILIES[architecture.family].fused.items() for part in parts}
    found = {}
    for name, shape in shapes.items():
        split = _IN_LAYER.fullmatch(name)
        prefix, module, kind = split.groups() if split else ("", "", "")
        if module in fused:
            whole, parts = fused[module]
            rows = [shapes[f"{prefix}{part}.{kind}"][0] for part in parts]
            stored, start = f"{prefix}{whole}.{kind}", sum(rows[: parts.index(module)])
            found[name] = Place((stored,), (sum(rows), *shape[1:]), start, shape[0])
        elif single_experts and module.startswith("mlp.experts."):
            each = tuple(name.replace(".experts.", f".experts.{expert}.") for expert in range(shape[0]))
            found[name] = Place(each, shape[1:], 0, shape[1])
        else:
            found[name] = Place((name,), shape, 0, shape[0])
    return found


def safetensors_places(architecture: Architecture, shard: Shard) -> dict[str, Place]:
    """Map the canonical names that a shard needs to where the safetensors files of its family have them."""
    return places(architecture, shard, single_experts=FAMILIES[architecture.family].single_experts)


def stored_names(found: Mapping[str, Place]) -> tuple[str, ...]:
    """List the names in these places, each once."""
    return tuple(dict.fromkeys(name for place in found.values() for name in place.names))


def check_shapes(found: Mapping[str, Place], stored: Mapping[str, StoredTensor], path: Path) -> None:
    """Raise WeightsError if a tensor of a file contradicts the configuration. Names that are in no place pass."""
    expected = {name: place.shape for place in found.values() for name in place.names}
    for name, tensor in stored.items():
        if tensor.shape != expected.get(name, tensor.shape):
            raise WeightsError(
                f"{path} holds {name} as {list(tensor.shape)}, but its configuration says {list(expected[name])}: "
                "it is damaged, delete it and fetch the model again"
            )


def located(found: Mapping[str, Place], stored: Mapping[str, StoredT]) -> dict[str, tuple[StoredT, ...]]:
    """Locate each tensor that has all its parts in `stored`, the parts of a stack one by one."""
    return {
        name: tuple(rows_of(stored[part], place.start, place.rows) for part in place.names)
        for name, place in found.items()
        if all(part in stored for part in place.names)
    }

"""mlx-lm's own model of a checkpoint, with parameters that are not read before they are used. Knows no cut.

A family's `sanitize` renames, stacks and splits the tensors of a checkpoint, and some look at those of the first layer
to see what the authors wrote. So it gets all layers of the checkpoint: tensors of other stages that have no file here
are zeros, which are never computed, in the shape of the same tensor in another layer.
"""

from __future__ import annotations

import importlib
import re
import resource
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten

from cluster.shard import Shard
from engines.errors import EngineError
from models.weights.checkpoint import tensor_names
from models.weights.layer_names import kind_of, layer_of
from models.weights.reader import Weights
from models.weights.repository import Repository

FAMILY_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    IndexError,
    KeyError,
    NameError,
    NotImplementedError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""What a family's code raises for a configuration, a checkpoint or a call that it was not written for."""

_BESIDE_SCALING = ("rope_theta", "partial_rotary_factor", "original_max_position_embeddings")
"""What older configurations have beside `rope_scaling`."""

Arrays = dict[str, mx.array]


def load_family_model(weights: Weights, shard: Shard, *, upcast: bool) -> nn.Module:
    """Build the family's model with the weights of a shard; the rest is NaN, or is in layers of other stages.

    Nothing is computed. With `upcast` all but packed weights become float32. Raises EngineError for an unknown family,
    and for weights that do not fit the model.
    """
    with open_file_limit_kept():
        importlib.import_module("mlx_lm.utils")
    try:
        if weights.repository:
            return _from_repository(weights.repository, shard, upcast)
        settings = dict(weights.settings)
        model_class, args_class = _classes(settings)
        model = model_class(args_class.from_dict(settings))
        _set_parameters(model, model.sanitize(_described(weights, shard)), shard, upcast)
    except FAMILY_ERRORS as error:
        raise EngineError(f"mlx-lm cannot load this model ({error}); update it or choose another model") from error
    return model


def _classes(config: Mapping[str, Any]) -> tuple[Any, Any]:
    """Return the family's classes of the model and its arguments. Raises EngineError for an unknown family."""
    family = str(config.get("model_type"))
    if not re.fullmatch(r"[\w-]+", family):
        raise EngineError(f"{family!r} is not the name of a model family; check its config.json")
    try:
        classes: tuple[Any, Any] = importlib.import_module("mlx_lm.utils")._get_classes(config)
    except (ValueError, SystemExit) as error:  # one family ends the process if it lacks a package
        raise EngineError(f"mlx-lm has no {family!r} family; update it or choose another model") from error
    return classes


def _from_repository(repository: Repository, shard: Shard, upcast: bool) -> nn.Module:
    """Have mlx-lm load a folder, with its own order of sanitizing and quantizing.

    For a model that exobus describes its files decide whether it has a head, as they do in other engines.
    """
    model = repository.model
    head = {} if model.undescribed else {"tie_word_embeddings": model.sizes.tied_embedding}

    def classes(config: dict[str, Any]) -> tuple[Any, Any]:
        config.update(flat_rope(config) | head)
        family_class, args_class = _classes(config)

        class ShardOfFamily(family_class):  # type: ignore[misc, valid-type]
            def sanitize(self, weights: Arrays) -> Arrays:
                weights = with_stand_ins(weights, [name for name in repository.names if not _is_own(name, shard)])
                weights = super().sanitize(weights) if hasattr(super(), "sanitize") else weights
                return {name: array for name, array in weights.items() if _is_own(name, shard)}

            def load_weights(self, named: list[tuple[str, mx.array]], strict: bool = True) -> nn.Module:
                return _set_parameters(self, dict(named), shard, upcast)

        return ShardOfFamily, args_class

    load_model = importlib.import_module("mlx_lm.utils").load_model
    loaded: nn.Module = load_model(repository.path, lazy=True, strict=False, get_model_classes=classes)[0]
    return loaded


def flat_rope(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return rope's constants by their older names, which most families read, if only the newer ones are given."""
    given, lifted = config.get("rope_parameters"), {}
    if isinstance(given, dict) and isinstance(given.get("full_attention"), dict):  # Gemma 3, of transformers 5
        lifted = {"rope_local_base_freq": given.get("sliding_attention", {}).get("rope_theta", 10000.0)}
        given = given["full_attention"]
    if not isinstance(given, dict) or "rope_theta" not in given or "rope_theta" in config:
        return {}
    lifted |= {name: given[name] for name in _BESIDE_SCALING if name in given and name not in config}
    scaling = {name: value for name, value in given.items() if name != "rope_theta"}
    kind = scaling.get("rope_type", "default")
    return lifted | {"rope_scaling": None if kind == "default" else scaling | {"type": kind}}


def with_stand_ins(weights: Arrays, names: Iterable[str]) -> Arrays:
    """Add a stand-in for each named tensor that is absent. It has the shape of its like in another layer.

    Without one it is empty, so that a family that looks at its shape fails, and does not take it for what it is not.
    """
    alike = {kind_of(name): array for name, array in weights.items()}
    stand_ins = {}
    for name in set(names) - weights.keys():
        like = alike.get(kind_of(name))
        stand_ins[name] = mx.zeros((0,)) if like is None else mx.zeros(like.shape, like.dtype)
    return weights | stand_ins


def _described(weights: Weights, shard: Shard) -> Arrays:
    """Read a shard's tensors of a model that exobus describes."""
    return {name: mx.array(weights.tensor(name)) for name in tensor_names(weights.architecture, shard)}


def _set_parameters(model: nn.Module, weights: Arrays, shard: Shard, upcast: bool) -> nn.Module:
    """Give the model its own tensors of a sanitized checkpoint.

    What is missing outside of the layers becomes NaN, which the first pass finds if it needs it. Raises EngineError if
    a tensor of the shard's layers is missing, if one is no parameter, and for a wrong shape.
    """
    parameters: Arrays = {name: array for name, array in tree_flatten(model.parameters()) if _is_own(name, shard)}
    for name in sorted(weights.keys() - parameters.keys()):
        raise EngineError(f"the model has no place for {name}; update mlx-lm or choose another model")
    for name, parameter in parameters.items():
        array = weights.get(name)
        if array is None and layer_of(name) is not None:
            raise EngineError(f"the checkpoint has no {name}; fetch the whole model again")
        if array is None:
            array = mx.full(parameter.shape, float("nan")) if _is_float(parameter) else mx.zeros_like(parameter)
        if array.shape != parameter.shape:
            shapes = f"{list(array.shape)} instead of {list(parameter.shape)}"
            raise EngineError(f"the checkpoint has {name} as {shapes}; it is damaged, fetch the model again")
        parameters[name] = array.astype(mx.float32) if upcast and _is_float(array) else array
    model.update(tree_unflatten(list(parameters.items())))
    return model


def _is_own(name: str, shard: Shard) -> bool:
    """Return whether a parameter is of one of the shard's layers, or of none."""
    layer = layer_of(name)
    return layer is None or layer in shard.layers


def _is_float(array: mx.array) -> bool:
    return bool(mx.issubdtype(array.dtype, mx.floating))


@contextmanager
def open_file_limit_kept() -> Iterator[None]:
    """Undo what importing mlx_lm does to RLIMIT_NOFILE, as far as the system lets a process raise it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield
    lowered = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    except (ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowered, lowered))

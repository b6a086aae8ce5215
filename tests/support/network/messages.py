"""Values of message classes, made from their fields' types: an example of each, and any within the bounds."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeVar

import msgspec
from hypothesis import strategies as st
from msgspec import inspect

from bus.messages import Message
from cluster.shard import Shard

M = TypeVar("M", bound=Message)
ONE_LINE = st.characters(exclude_categories=("Cs", "Cc", "Cf", "Zl", "Zp"))


def example(cls: type[M]) -> M:
    """Return a value of a message class, always the same, in which no field has its default."""
    return msgspec.convert(_sample(inspect.type_info(cls), cls.__name__), cls)


def _sample(kind: inspect.Type, path: str) -> Any:
    match kind:
        case inspect.Metadata(type=inner):
            return _sample(inner, path)
        case inspect.StructType():
            return _sample_struct(kind, path)
        case inspect.EnumType(cls=enum):
            return next(iter(enum))
        case inspect.VarTupleType(item_type=item):
            return [_sample(item, f"{path}[{index}]") for index in range(2)]
        case inspect.DictType(key_type=key, value_type=value):
            return {_sample(key, f"{path} key"): _sample(value, f"{path} value")}
        case inspect.UnionType(types=types):
            return _sample(next(member for member in types if not isinstance(member, inspect.NoneType)), path)
        case inspect.BytesType(max_length=most):
            return path.encode()[-(most or 0) :]
        case _:
            scalars = {bool: True, int: len(path) * 1001, float: len(path) + 0.25, str: f"{path} é"}
            return scalars[_SCALARS[type(kind)]]


def _sample_struct(kind: inspect.StructType, path: str) -> Any:
    if kind.cls is Shard:
        return {"model_id": "tiny", "start_layer": 1, "end_layer": 3, "n_layers": 4}
    tags = {kind.tag_field: kind.tag} if kind.tag_field else {}
    return tags | {field.name: _sample(field.type, f"{path}.{field.name}") for field in kind.fields}


_SCALARS: dict[type[inspect.Type], type] = {
    inspect.BoolType: bool,
    inspect.IntType: int,
    inspect.FloatType: float,
    inspect.StrType: str,
}


def any_value(kind: inspect.Type, longest: int = 8) -> st.SearchStrategy[Any]:
    """Return a strategy for plain values of a field's type, within its bounds and with texts of at most `longest`."""
    match kind:
        case inspect.Metadata(type=inner):
            return any_value(inner, longest)
        case inspect.StructType():
            return _any_struct(kind, longest)
        case inspect.EnumType(cls=enum):
            return st.sampled_from([member.value for member in enum])
        case inspect.VarTupleType(item_type=item):
            return st.lists(any_value(item, longest), max_size=2)
        case inspect.DictType(key_type=key, value_type=value):
            return st.dictionaries(any_value(key, longest), any_value(value, longest), max_size=2)
        case inspect.UnionType(types=types):
            return st.one_of([any_value(member, longest) for member in types])
        case _:
            return _any_scalar(kind, longest)


def _any_scalar(kind: inspect.Type, longest: int) -> st.SearchStrategy[Any]:
    match kind:
        case inspect.IntType(ge=least, le=most):
            return st.integers(least, most)
        case inspect.FloatType(ge=least, le=most):
            return st.floats(least, most, allow_nan=False)
        case inspect.StrType(max_length=most, pattern=None):
            return st.text(max_size=min(most or 0, longest))
        case inspect.StrType(max_length=most):
            return st.text(ONE_LINE, max_size=min(most or 0, longest))
        case inspect.BytesType(max_length=most):
            return st.binary(max_size=min(most or 0, longest))
        case inspect.BoolType():
            return st.booleans()
        case _:
            return st.none()


def _any_struct(kind: inspect.StructType, longest: int) -> st.SearchStrategy[Any]:
    if kind.cls is Shard:
        return st.lists(st.integers(0, 99), min_size=3, max_size=3, unique=True).map(_shard)
    tags = {kind.tag_field: st.just(kind.tag)} if kind.tag_field else {}
    return st.fixed_dictionaries(tags | {field.name: any_value(field.type, longest) for field in kind.fields})


def _shard(numbers: list[int]) -> dict[str, Any]:
    start, end, n_layers = sorted(numbers)
    return {"model_id": "m", "start_layer": start, "end_layer": end, "n_layers": n_layers}


def scalars(kind: inspect.Type, path: str) -> Iterator[tuple[str, inspect.Type]]:
    """Yield every type inside a type, with its path, except structs, unions and metadata."""
    match kind:
        case inspect.Metadata(type=inner):
            yield from scalars(inner, path)
        case inspect.StructType(fields=fields):
            for field in fields:
                yield from scalars(field.type, f"{path}.{field.name}")
        case inspect.UnionType(types=types):
            for member in types:
                yield from scalars(member, path)
        case inspect.VarTupleType(item_type=item):
            yield path, kind
            yield from scalars(item, f"{path}[]")
        case inspect.DictType(key_type=key, value_type=value):
            yield path, kind
            yield from scalars(key, f"{path} key")
            yield from scalars(value, f"{path} value")
        case _:
            yield path, kind

"""Writes the tables of protocol.md from the message classes: `python -m bus.document`; with `--check` only compares.

The prose around the tables is written by hand.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
from msgspec import inspect as shapes

from bus.dataplane import frames
from bus.messages import MESSAGES, Fact, Header, LocalFact, Message, Reply, Work
from cluster.openings import Opening
from cluster.sampling import SamplingParams
from common.files import write_atomic

DOCUMENT = Path(__file__).resolve().parent.parent / "protocol.md"
BEGIN, END = "<!-- begin generated -->", "<!-- end generated -->"
STALE = "protocol.md is stale: run `make protocol`"

_GROUPS: tuple[tuple[str, type[Message], str], ...] = (
    ("Facts", Fact, "Published to the subscribers on every node."),
    ("Local facts", LocalFact, "Published to the subscribers on the sender's own node only."),
    ("Work", Work, "Sent to one address."),
    ("Replies", Reply, "Sent to the sender of some work; the id of that is the header's `cause`."),
)
_FRAME_FIELD = re.compile(r"^ +(?:offset +)?(\d+)  (\w+) +(\w+) *(.*)$", re.MULTILINE)
_FLAG = re.compile(r"^ +(\w+): Final = (\d+)  # (.*)$", re.MULTILINE)
_DTYPE = re.compile(r"^ +(\d+): np\.dtype\(\"<?(\w+)\"\),(?:  # (.*))?$", re.MULTILINE)


def generated() -> str:
    """Return all tables, as Markdown."""
    source = inspect.getsource(frames)
    blocks = [
        "## Header of a message",
        _fields(Header),
        *(block for title, group, meaning in _GROUPS for block in (f"## {title}", meaning, *_messages(group))),
        "## Values inside messages",
        *(block for value in _values() for block in _value(value)),
        "## Payload of an opening data frame",
        *(block for value in (Opening, SamplingParams) for block in _value(value)),
        "## Header of a data frame",
        _table(("offset", "field", "type", "meaning"), _FRAME_FIELD.findall(frames.__doc__ or "")),
        "Flags, of which several may be set:",
        _table(("flag", "bit", "meaning"), _FLAG.findall(source)),
        "Types of a payload's values:",
        _table(("number", "numpy type, little-endian", "note"), _DTYPE.findall(source)),
    ]
    return "\n\n".join(block for block in blocks if block)


def merged(document: str) -> str:
    """Return the document with new tables. Raises ValueError if the marks are missing."""
    before, begin, rest = document.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"protocol.md lacks {BEGIN} and {END}; put them back where the tables belong")
    return f"{before}{BEGIN}\n\n{generated()}\n\n{END}{after}"


def _messages(group: type[Message]) -> Iterator[str]:
    for kind, cls in MESSAGES.items():
        is_local = issubclass(cls, LocalFact)
        if issubclass(cls, group) and is_local == (group is LocalFact):
            yield from (f"### `{kind}`", _doc(cls), _fields(cls))


def _value(cls: type[Any]) -> tuple[str, str, str]:
    return f"### {cls.__name__}", _doc(cls), _fields(cls)


def _doc(cls: type[Any]) -> str:
    return inspect.cleandoc(cls.__doc__ or "")


def _fields(cls: type[Any]) -> str:
    described = shapes.type_info(cls)
    assert isinstance(described, shapes.StructType), f"{cls.__name__} is no struct"
    rows = [(f"`{f.name}`", _type(f.type), _default(f), _meaning(f.type)) for f in described.fields]
    return _table(("field", "type", "default", "meaning"), rows) if rows else "No fields."


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("|" + "".join(f" {cell} |" if cell else " |" for cell in cells) for cells in lines)


def _type(kind: shapes.Type) -> str:
    match kind:
        case shapes.Metadata(type=inner):
            return _type(inner)
        case shapes.StructType(cls=cls):
            return f"[{cls.__name__}](#{cls.__name__.lower()})"
        case shapes.VarTupleType(item_type=item) | shapes.FrozenSetType(item_type=item):
            return f"array{_most(kind.max_length)} of {_type(item)}"
        case shapes.DictType(key_type=key, value_type=value):
            return f"map{_most(kind.max_length)} of {_type(key)} to {_type(value)}"
        case shapes.StrType(max_length=most):
            return f"str{_most(most)}"
        case shapes.BytesType(max_length=most):
            return f"bytes{_most(most)}"
        case shapes.UnionType(types=types):
            return " or ".join(_type(member) for member in types)
        case _:
            names = {shapes.NoneType: "nil", shapes.StrType: "str", shapes.IntType: "int", shapes.FloatType: "float"}
            return names.get(type(kind), type(kind).__name__.removesuffix("Type").lower())


def _most(length: int | None) -> str:
    return "" if length is None else f" ≤ {length}"


def _default(field: shapes.Field) -> str:
    if field.default_factory is not msgspec.NODEFAULT:
        return f"`{msgspec.json.encode(field.default_factory()).decode()}`"
    if field.default is msgspec.NODEFAULT:
        return ""
    if isinstance(field.default, msgspec.Struct):
        return "all defaults"
    return f"`{msgspec.json.encode(field.default).decode()}`"


def _meaning(kind: shapes.Type) -> str:
    described = isinstance(kind, shapes.Metadata) and kind.extra_json_schema
    return str(described.get("description", "")) if described else ""


def _values() -> list[type[Any]]:
    """Return the structs inside messages, each once, in the order of their first use."""
    found: dict[type[Any], None] = {}
    for cls in MESSAGES.values():
        _collect(shapes.type_info(cls), found)
    return [cls for cls in found if not issubclass(cls, Message)]


def _collect(kind: shapes.Type, found: dict[type[Any], None]) -> None:
    match kind:
        case shapes.Metadata(type=inner) | shapes.VarTupleType(item_type=inner):
            _collect(inner, found)
        case shapes.UnionType(types=types):
            for member in types:
                _collect(member, found)
        case shapes.StructType(cls=cls, fields=fields) if cls not in found:
            found[cls] = None
            for field in fields:
                _collect(field.type, found)


def main(arguments: Sequence[str]) -> None:
    """Write the tables, or with `--check` exit with status 1 if they differ."""
    present = DOCUMENT.read_text()
    new = merged(present)
    if "--check" in arguments:
        sys.exit(STALE if new != present else 0)
    write_atomic(DOCUMENT, new)


if __name__ == "__main__":
    main(sys.argv[1:])

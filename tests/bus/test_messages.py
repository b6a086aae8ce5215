"""The classes of the protocol: their bytes, their bounds, and that an actor or a hub serves each of them.

After a deliberate change of the protocol, `python -m tests.bus.test_messages` writes tests/bus/wire_v4.txt again.
"""

from __future__ import annotations

import ast
from importlib import import_module
from itertools import permutations
from pathlib import Path
from typing import Any

import msgpack
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import inspect

from bus.actor import Actor
from bus.messages import (
    LOCAL_KINDS,
    MESSAGES,
    VERSION,
    ActorHello,
    ClusterCode,
    ClusterRotate,
    Fact,
    Header,
    HubDescribe,
    JoinRequest,
    LinkBye,
    LinkHello,
    LinkSubscribe,
    MemberApprove,
    MemberRevoke,
    MembersGet,
    Message,
    PeerDial,
    PeerDrop,
    Reply,
    RequestCancel,
    RequestCheck,
    Work,
    kind_of,
)
from bus.wire import decode, encode
from tests.support.bus import ROOT
from tests.support.network.messages import any_value, example, scalars

GOLDEN = Path(__file__).parent / "wire_v4.txt"
SERVED_BY_HUB_OR_LOOP = {ActorHello, HubDescribe, PeerDial, PeerDrop, LinkHello, LinkSubscribe, LinkBye, RequestCancel}
SERVED_BY_HUB_OR_LOOP |= {JoinRequest, MembersGet, MemberRevoke, MemberApprove, ClusterRotate, ClusterCode}
SERVED_BY_HUB_OR_LOOP |= {RequestCheck}
ACTORS = (
    "actors.discovery_actor",
    "actors.download_actor",
    "actors.engine_actor",
    "actors.node_actor",
    "actors.supervisor",
    "actors.topology_actor",
)

every_class = pytest.mark.parametrize("cls", MESSAGES.values(), ids=MESSAGES.keys())


def header(cls: type[Message]) -> Header:
    return Header(VERSION, kind_of(cls), "0123456789abcdef", "node-a/actor", 7, "fedcba9876543210", 1.5, 3)


def golden_lines() -> dict[str, tuple[bytes, bytes]]:
    """Return header and body by kind, from the file."""
    rows = (line.split() for line in GOLDEN.read_text().splitlines() if not line.startswith("#"))
    return {kind: (bytes.fromhex(head), bytes.fromhex(body)) for kind, head, body in rows}


def write_golden() -> None:
    """Write the bytes of every message to the file."""
    lines = ["# kind, header and body in hexadecimal; see tests/bus/test_messages.py"]
    for kind, cls in sorted(MESSAGES.items()):
        _, head, body = encode("to", header(cls), example(cls))
        lines.append(f"{kind} {head.hex()} {body.hex()}")
    GOLDEN.write_text("\n".join(lines) + "\n")


@every_class
def test_decoding_reverses_encoding(cls: type[Message]) -> None:
    message = example(cls)
    envelope = decode(encode("node-b/actor", header(cls), message))
    assert (str(envelope.to), envelope.message, envelope.header) == ("node-b/actor", message, header(cls))


def bounded(kind: inspect.Type) -> bool:
    match kind:
        case inspect.IntType() | inspect.FloatType():
            return kind.ge is not None and kind.le is not None
        case inspect.BoolType() | inspect.EnumType() | inspect.NoneType():
            return True
        case _:
            return getattr(kind, "max_length", None) is not None


@pytest.mark.parametrize("cls", [Header, *MESSAGES.values()])
def test_every_field_has_bounds(cls: type[msgspec.Struct]) -> None:
    assert not [path for path, kind in scalars(inspect.type_info(cls), cls.__name__) if not bounded(kind)]


@settings(max_examples=400)
@given(st.data(), st.sampled_from(sorted(MESSAGES)))
def test_decoding_reverses_encoding_of_any_values(data: st.DataObject, kind: str) -> None:
    cls = MESSAGES[kind]
    message = msgspec.convert(data.draw(any_value(inspect.type_info(cls))), cls)
    assert decode(encode("node-b/actor", header(cls), message)).message == message


@every_class
def test_bytes_are_those_on_file(cls: type[Message]) -> None:
    _, head, body = encode("to", header(cls), example(cls))
    assert (head, body) == golden_lines()[kind_of(cls)], "the protocol changed: read this file's docstring"


@every_class
def test_msgpack_package_reads_every_field(cls: type[Message]) -> None:
    head, body = golden_lines()[kind_of(cls)]
    assert msgpack.unpackb(head) == msgspec.to_builtins(header(cls))
    assert msgpack.unpackb(body, use_list=False) == msgspec.to_builtins(example(cls), builtin_types=(bytes,))


def test_every_kind_is_on_file() -> None:
    assert golden_lines().keys() == MESSAGES.keys()


@every_class
def test_fields_of_later_versions_are_tolerated(cls: type[Message]) -> None:
    later = msgspec.to_builtins(example(cls), builtin_types=(bytes,)) | {"of_a_later_version": [1, {"a": None}]}
    frames = [b"to", msgspec.msgpack.encode(header(cls)), msgspec.msgpack.encode(later)]
    assert decode(frames).message == example(cls)


@every_class
def test_docstring_names_the_sender(cls: type[Message]) -> None:
    assert cls.__doc__
    assert not cls.__doc__.startswith(cls.__name__)
    if issubclass(cls, Fact):
        assert "Published by" in cls.__doc__
    if issubclass(cls, Work) and cls not in (HubDescribe,):
        assert any(word in cls.__doc__ for word in ("Sent by", "Sent to", "Sent hub", "Sent between"))


@every_class
def test_message_is_fact_or_work_or_reply(cls: type[Message]) -> None:
    assert sum(issubclass(cls, way) for way in (Fact, Work, Reply)) == 1


def test_no_kind_is_a_prefix_of_another() -> None:
    assert not [(one, other) for one, other in permutations(MESSAGES, 2) if other.startswith(f"{one}.")]


def test_no_topic_is_a_prefix_of_another() -> None:
    facts = [kind for kind, cls in MESSAGES.items() if issubclass(cls, Fact)]
    assert not [(one, other) for one, other in permutations(facts, 2) if other.startswith(one)]


def test_facts_about_links_and_processes_are_local() -> None:
    local = {
        "peer.authenticated",
        "peer.refused",
        "peer.up",
        "peer.down",
        "actor.up",
        "topology.changed",
        "cluster.changed",
    }
    assert local == LOCAL_KINDS


def test_every_work_has_a_handler() -> None:
    served: set[type[Any]] = set(SERVED_BY_HUB_OR_LOOP)
    for name in ACTORS:
        module = import_module(name)
        classes = [value for value in vars(module).values() if isinstance(value, type) and issubclass(value, Actor)]
        served |= {message for cls in classes for message in cls.handlers}
    assert {cls for cls in MESSAGES.values() if issubclass(cls, Work)} <= served


def test_every_message_is_constructed_somewhere() -> None:
    made = {
        node.func.id
        for folder in ("bus", "actors", "gateway", "cli")
        for file in (ROOT / folder).rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }
    assert not {cls.__name__ for cls in MESSAGES.values()} - made


if __name__ == "__main__":
    write_golden()

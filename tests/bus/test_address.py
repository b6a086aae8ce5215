"""Addresses of actors."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bus.address import Address


@pytest.mark.parametrize("text", ["worker", "/worker", "here/worker"])
def test_address_without_node_means_own_node(text: str) -> None:
    assert Address.parse(text, "here") == Address("here", "worker")


def test_actor_name_may_hold_a_slash() -> None:
    assert Address.parse("node/a/b") == Address("node", "a/b")


@given(st.text().filter(lambda node: "/" not in node), st.text())
def test_parsing_reverses_writing(node: str, actor: str) -> None:
    address = Address(node, actor)
    assert Address.parse(str(address)) == address

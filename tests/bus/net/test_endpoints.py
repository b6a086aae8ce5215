"""Endpoints with the public key of their listener."""

from __future__ import annotations

import pytest

from bus.net.endpoints import HubPaths, address_of, key_of, node_of, port_of, with_key
from bus.net.keys import new_key_pair
from tests.support.bus import run_folder


def test_endpoint_contains_its_nodes_key() -> None:
    pair = new_key_pair()
    endpoint = with_key("tcp://[fe80::1%eth0]:41234", pair.public)
    assert (address_of(endpoint), key_of(endpoint)) == ("tcp://[fe80::1%eth0]:41234", pair.public)
    assert (node_of(endpoint), port_of(endpoint)) == (pair.node_id, 41234)


@pytest.mark.parametrize(
    "fragment", ["", "#", "#12", "#" + "g" * 64, "#" + "ab" * 31, "#" + "AB" * 32, "#" + "a " * 64]
)
def test_endpoint_without_whole_key_is_refused(fragment: str) -> None:
    with pytest.raises(ValueError, match="does not name its node's key"):
        key_of("tcp://127.0.0.1:1" + fragment)


def test_endpoints_lie_in_the_run_folder() -> None:
    with run_folder() as folder:
        paths = HubPaths(folder)
        assert {paths.facts_in, paths.facts_out, paths.work} == {
            f"ipc://{folder}/{name}" for name in ("facts-in", "facts-out", "work")
        }

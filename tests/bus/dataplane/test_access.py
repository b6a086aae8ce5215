"""`bus.dataplane.access`: which endpoints may be used, and which one a reply goes to."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bus.dataplane.access import LOCAL, ClusterAccess, access_of, best_endpoint, node_at, owner_of, reply_endpoint
from bus.dataplane.connections import NotLinked
from bus.net.endpoints import with_key
from bus.net.keys import new_key_pair
from cluster.roles import Role
from tests.support.bus import code_of, hub_config, new_node
from tests.support.network.dataplane import new_access, peer

OURS, THEIRS, UNKNOWN_NODE = new_key_pair(), new_key_pair(), new_key_pair()
THEIR_TCP = with_key("tcp://10.0.0.1:1", THEIRS.public)
OUR_TCP = with_key("tcp://10.0.0.2:1", OURS.public)


def ring_file(folder: Path, name: str = "stage.ring") -> str:
    """Return the endpoint of a file that exists."""
    (folder / name).touch()
    return f"ipc://{folder}/{name}"


def test_best_endpoint_is_ipc_on_the_same_machine(folder: Path) -> None:
    here, elsewhere = ring_file(folder), f"ipc://{folder}/elsewhere.ring"
    assert best_endpoint((here, THEIR_TCP)) == here
    assert best_endpoint((elsewhere, THEIR_TCP)) == THEIR_TCP
    with pytest.raises(ValueError, match="can be reached from this machine"):
        best_endpoint((elsewhere,))


def test_endpoint_of_another_node_is_refused() -> None:
    assert best_endpoint((THEIR_TCP,), THEIRS.node_id) == THEIR_TCP
    with pytest.raises(ValueError, match=f"does not belong to node {OURS.node_id}"):
        best_endpoint((THEIR_TCP,), OURS.node_id)
    with pytest.raises(ValueError, match="does not name its node's key"):
        best_endpoint(("tcp://10.0.0.1:1",), OURS.node_id)


@pytest.mark.parametrize("name", ["work", "facts-in", "stage.ring.part", "ring"])
def test_file_that_is_no_data_plane_is_refused(folder: Path, name: str) -> None:
    with pytest.raises(ValueError, match="can be reached"):
        best_endpoint((ring_file(folder, name),))


def test_file_in_a_writable_folder_is_refused(folder: Path) -> None:
    endpoint = ring_file(folder)
    folder.chmod(0o777)
    with pytest.raises(ValueError, match="can be reached"):
        best_endpoint((endpoint,))


def test_file_in_another_users_folder_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    endpoint, uid = ring_file(folder), os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: uid + 1)
    with pytest.raises(ValueError, match="can be reached"):
        best_endpoint((endpoint,))


@pytest.mark.parametrize("endpoint", ["ipc://stage.ring", "ipc://", "ipc:///a\0b.ring", "ipc://@abstract.ring"])
def test_malformed_path_is_refused(endpoint: str) -> None:
    with pytest.raises(ValueError, match="can be reached"):
        best_endpoint((endpoint,))


def test_endpoints_belong_to_the_node_of_their_key() -> None:
    assert owner_of(("ipc:///a/b.ring", THEIR_TCP)) == THEIRS.node_id
    assert owner_of(("ipc:///a/b.ring",)) == owner_of(()) == node_at("ipc:///a/b.ring") == ""
    with pytest.raises(ValueError, match="several nodes"):
        owner_of((OUR_TCP, THEIR_TCP))
    with pytest.raises(ValueError, match="does not name"):
        owner_of(("tcp://10.0.0.1:1",))


def test_replies_use_ipc_on_the_own_node_only(folder: Path) -> None:
    file = ring_file(folder)
    assert reply_endpoint((file, OUR_TCP), OURS.node_id) == file
    assert reply_endpoint((file,), OURS.node_id) == file
    assert reply_endpoint((file, THEIR_TCP), OURS.node_id) == THEIR_TCP


def test_only_linked_nodes_may_be_connected_to() -> None:
    access = new_access(OURS, THEIRS)
    assert access.check_linked(THEIR_TCP) == THEIRS.node_id
    with pytest.raises(NotLinked, match="is not linked to this one"):
        access.check_linked(with_key("tcp://10.0.0.1:1", UNKNOWN_NODE.public))
    access.allowlist.remove(THEIRS.node_id)
    with pytest.raises(NotLinked, match=THEIRS.node_id):
        access.check_linked(THEIR_TCP)


def test_standalone_node_connects_over_ipc_only() -> None:
    assert LOCAL.check_linked("ipc:///a/b.ring") == ""
    with pytest.raises(NotLinked, match="stands alone"):
        LOCAL.check_linked(THEIR_TCP)


def test_roles_are_those_of_the_links() -> None:
    access = new_access(OURS)
    access.allowlist.add([peer(THEIRS, Role.OBSERVER)])
    assert access.role_of(THEIRS.node_id) is Role.OBSERVER
    assert access.role_of(OURS.node_id) is access.role_of("") is LOCAL.role_of("") is Role.MEMBER
    assert access.role_of(UNKNOWN_NODE.node_id) is LOCAL.role_of(THEIRS.node_id) is None


def test_access_follows_the_configuration(folder: Path) -> None:
    node = new_node()
    config = hub_config(folder, node, cluster=code_of("home").name)
    access = access_of(config)
    assert isinstance(access, ClusterAccess)
    assert (access.host, access.own_id, access.role_of(node)) == (config.host, node, Role.MEMBER)
    assert access_of(hub_config(folder, "no key")) is LOCAL

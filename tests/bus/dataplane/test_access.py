"""`bus.dataplane.access`: which end points may be dialled, and to whom an answer may go."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from bus.dataplane.access import (
    NotLinked,
    best_endpoint,
    check_linked,
    cluster_access,
    node_at,
    owner_of,
    reply_endpoint,
    role_of,
)
from bus.net.endpoints import with_key
from bus.net.keys import new_key_pair
from cluster.roles import Role
from tests.support.access import peer, reach
from tests.support.bus import code_of, hub_config, new_node

OURS, THEIRS, UNKNOWN_NODE = new_key_pair(), new_key_pair(), new_key_pair()
THEIR_TCP = with_key("tcp://10.0.0.1:1", THEIRS.public)
OUR_TCP = with_key("tcp://10.0.0.2:1", OURS.public)


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as made:  # mode 0700, as run folders are
        yield Path(made)


def ring_file(folder: Path, name: str = "stage.ring") -> str:
    """The end point of a file that is there."""
    (folder / name).touch()
    return f"ipc://{folder}/{name}"


def test_the_nearest_end_point_is_chosen(folder: Path) -> None:
    here, elsewhere = ring_file(folder), f"ipc://{folder}/elsewhere.ring"
    assert best_endpoint((here, THEIR_TCP)) == here
    assert best_endpoint((elsewhere, THEIR_TCP)) == THEIR_TCP
    with pytest.raises(ValueError, match="can be reached from this machine"):
        best_endpoint((elsewhere,))


def test_an_end_point_of_another_node_than_the_one_said_to_be_there_is_refused() -> None:
    assert best_endpoint((THEIR_TCP,), THEIRS.node_id) == THEIR_TCP
    with pytest.raises(ValueError, match=f"does not belong to node {OURS.node_id}"):
        best_endpoint((THEIR_TCP,), OURS.node_id)
    with pytest.raises(ValueError, match="does not name its node's key"):
        best_endpoint(("tcp://10.0.0.1:1",), OURS.node_id)


@pytest.mark.parametrize("name", ["work", "facts-in", "stage.ring.part", "ring"])
def test_a_file_that_is_no_data_plane_is_no_end_point(folder: Path, name: str) -> None:
    with pytest.raises(ValueError, match="can be reached"):
        best_endpoint((ring_file(folder, name),))


def test_a_data_plane_in_a_folder_that_others_may_write_to_is_no_end_point(folder: Path) -> None:
    endpoint = ring_file(folder)
    folder.chmod(0o777)
    with pytest.raises(ValueError, match="can be reached"):
        best_endpoint((endpoint,))


def test_a_data_plane_in_another_users_folder_is_no_end_point(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    endpoint, uid = ring_file(folder), os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: uid + 1)
    with pytest.raises(ValueError, match="can be reached"):
        best_endpoint((endpoint,))


@pytest.mark.parametrize("endpoint", ["ipc://stage.ring", "ipc://", "ipc:///a\0b.ring", "ipc://@abstract.ring"])
def test_what_is_no_path_is_no_end_point(endpoint: str) -> None:
    with pytest.raises(ValueError, match="can be reached"):
        best_endpoint((endpoint,))


def test_end_points_belong_to_the_node_whose_key_they_name() -> None:
    assert owner_of(("ipc:///a/b.ring", THEIR_TCP)) == THEIRS.node_id
    assert owner_of(("ipc:///a/b.ring",)) == owner_of(()) == node_at("ipc:///a/b.ring") == ""
    with pytest.raises(ValueError, match="several nodes"):
        owner_of((OUR_TCP, THEIR_TCP))
    with pytest.raises(ValueError, match="does not name"):
        owner_of(("tcp://10.0.0.1:1",))


def test_only_the_own_nodes_gateway_is_answered_over_ipc(folder: Path) -> None:
    file = ring_file(folder)
    assert reply_endpoint((file, OUR_TCP), OURS.node_id) == file
    assert reply_endpoint((file,), OURS.node_id) == file
    assert reply_endpoint((file, THEIR_TCP), OURS.node_id) == THEIR_TCP


def test_only_linked_nodes_are_dialled() -> None:
    place = reach(OURS, THEIRS)
    assert check_linked(THEIR_TCP, place) == THEIRS.node_id
    with pytest.raises(NotLinked, match="is not linked to this one"):
        check_linked(with_key("tcp://10.0.0.1:1", UNKNOWN_NODE.public), place)
    place.linked.gone(THEIRS.node_id)
    with pytest.raises(NotLinked, match=THEIRS.node_id):
        check_linked(THEIR_TCP, place)


def test_a_node_that_stands_alone_dials_ipc_only() -> None:
    assert check_linked("ipc:///a/b.ring", None) == ""
    with pytest.raises(NotLinked, match="stands alone"):
        check_linked(THEIR_TCP, None)


def test_roles_are_those_of_the_links() -> None:
    place = reach(OURS)
    place.linked.standing([peer(THEIRS, Role.OBSERVER)])
    assert role_of(place, THEIRS.node_id) is Role.OBSERVER
    assert role_of(place, OURS.node_id) is role_of(place, "") is role_of(None, "") is Role.MEMBER
    assert role_of(place, UNKNOWN_NODE.node_id) is role_of(None, THEIRS.node_id) is None


def test_a_node_of_a_cluster_has_a_place_and_one_alone_has_none(folder: Path) -> None:
    node = new_node()
    config = hub_config(folder, node, cluster=code_of("home").name)
    place = cluster_access(config)
    assert place is not None
    assert (place.host, place.pair.node_id, role_of(place, node)) == (config.host, node, Role.MEMBER)
    assert cluster_access(hub_config(folder, "no key")) is None

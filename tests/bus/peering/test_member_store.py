"""`bus.peering.member_store`: members outlive their hub."""

from __future__ import annotations

from bus.messages import JoinAccept
from bus.peering.member_store import read_members
from tests.support.bus import KEYS, new_node, running_hub
from tests.support.network.joining import reply_at_join_port

A, B = new_node(), new_node()


def test_members_are_kept_on_file() -> None:
    with running_hub(A) as hub:
        assert isinstance(reply_at_join_port(hub, KEYS[B]), JoinAccept)
        assert read_members(hub.run_dir, "home", strict=False).require(B).key == KEYS[B].public.hex()
        assert not read_members(hub.run_dir, "other", strict=False).by_id

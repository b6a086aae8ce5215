"""The file of the nodes that this node let in or shut out, so that a restart forgets neither. No sockets here."""

from __future__ import annotations

from pathlib import Path

import msgspec

from bus.net.keys import KeyFileError, read_secret, write_secret
from cluster.membership import Member, Membership

MEMBERS_FILE = "members.json"
LARGEST = 1 << 20


class _Kept(msgspec.Struct, frozen=True):
    """Members of one cluster; those of another are nobody here."""

    cluster: str
    members: tuple[Member, ...]


def read_members(data_dir: Path, cluster: str, *, strict: bool) -> Membership:
    """The members as they were kept; none where there is no file, or one of another cluster. Raises KeyFileError."""
    path = data_dir / MEMBERS_FILE
    if not path.exists():
        return Membership(cluster, strict)
    try:
        kept = msgspec.json.decode(read_secret(path, LARGEST), type=_Kept)
    except msgspec.DecodeError as error:
        raise KeyFileError(f"{path} is damaged ({error}); restore it, or delete it to let members join anew") from None
    known = kept.members if kept.cluster == cluster else ()
    return Membership(cluster, strict, {member.node_id: member for member in known})


def write_members(data_dir: Path, members: Membership) -> None:
    """Keep the members, whole or not at all. Raises KeyFileError."""
    kept = _Kept(members.cluster, tuple(members.by_id.values()))
    write_secret(data_dir / MEMBERS_FILE, msgspec.json.encode(kept).decode())

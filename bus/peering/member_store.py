"""The file of the nodes that this node let in or shut out, so that a restart forgets neither. No sockets here."""

from __future__ import annotations

from pathlib import Path

import msgspec

from cluster.membership import Member, Membership
from common.private_files import PrivateFileError, read_private, write_private

MEMBERS_FILE = "members.json"
LARGEST = 1 << 20


class _Kept(msgspec.Struct, frozen=True):
    """Members of one cluster; those of another are nobody here."""

    cluster: str
    members: tuple[Member, ...]


def read_members(data_dir: Path, cluster: str, *, strict: bool) -> Membership:
    """Return the members on file; none if there is no file, or one of another cluster. Raises PrivateFileError."""
    path = data_dir / MEMBERS_FILE
    if not path.exists():
        return Membership(cluster, strict)
    try:
        kept = msgspec.json.decode(read_private(path, LARGEST), type=_Kept)
    except msgspec.DecodeError as error:
        raise PrivateFileError(
            f"{path} is damaged ({error}); restore it, or delete it to let members join anew"
        ) from None
    known = kept.members if kept.cluster == cluster else ()
    return Membership(cluster, strict, {member.node_id: member for member in known})


def write_members(data_dir: Path, members: Membership) -> None:
    """Keep the members, whole or not at all. Raises PrivateFileError."""
    kept = _Kept(members.cluster, tuple(members.by_id.values()))
    write_private(data_dir / MEMBERS_FILE, msgspec.json.encode(kept).decode())

"""The file in which a node keeps the members of its cluster, so that a restart forgets neither approved nor revoked."""

from __future__ import annotations

from pathlib import Path

import msgspec

from cluster.membership import Member, Membership
from common.private_files import PrivateFileError, read_private, write_private

MEMBERS_FILE = "members.json"
MAX_BYTES = 1 << 20


class _Stored(msgspec.Struct, frozen=True):
    """Members of one cluster. In another cluster they mean nothing."""

    cluster: str
    members: tuple[Member, ...]


def read_members(data_dir: Path, cluster: str, *, strict: bool) -> Membership:
    """Return the members on file; none if there is no file, or one of another cluster. Raises PrivateFileError."""
    path = data_dir / MEMBERS_FILE
    if not path.exists():
        return Membership(cluster, strict)
    try:
        stored = msgspec.json.decode(read_private(path, MAX_BYTES), type=_Stored)
    except msgspec.DecodeError as error:
        raise PrivateFileError(
            f"{path} is damaged ({error}); restore it, or delete it to let members join anew"
        ) from None
    members = stored.members if stored.cluster == cluster else ()
    return Membership(cluster, strict, {member.node_id: member for member in members})


def write_members(data_dir: Path, members: Membership) -> None:
    """Replace the file, in one step. Raises PrivateFileError."""
    stored = _Stored(members.cluster, tuple(members.by_id.values()))
    write_private(data_dir / MEMBERS_FILE, msgspec.json.encode(stored).decode())

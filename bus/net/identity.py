"""A node's key, join code and role, from the files that its settings name."""

from __future__ import annotations

from bus.net.keys import KeyPair, read_key_pair
from cluster.join_code import ClusterKeys, JoinCode, JoinCodeError, parse_join_code
from cluster.roles import Role
from common.config import NodeConfig
from common.private_files import PrivateFileError, read_private


def own_key(config: NodeConfig) -> KeyPair:
    """Read the node's key pair. Raises PrivateFileError."""
    return read_key_pair(config.key_path)


def own_code(config: NodeConfig) -> JoinCode | None:
    """Read the node's join code. Returns None if the node stands alone. Raises PrivateFileError."""
    if not config.cluster:
        return None
    try:
        return parse_join_code(read_private(config.code_path))
    except JoinCodeError as error:
        raise PrivateFileError(f"{config.code_path} holds no join code: {error}") from None


def cluster_keys(config: NodeConfig) -> ClusterKeys | None:
    """Derive the keys of the node's join code. Returns None if the node stands alone. Raises PrivateFileError."""
    code = own_code(config)
    return code.keys() if code else None


def own_role(config: NodeConfig) -> Role:
    """Return the node's role; a node that stands alone is a member. Raises PrivateFileError."""
    code = own_code(config)
    return code.role if code else Role.MEMBER

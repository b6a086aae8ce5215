"""Addresses of actors."""

from __future__ import annotations

from dataclasses import dataclass

HUB = "hub"  # the name of a node's hub among its actors


@dataclass(frozen=True, slots=True)
class Address:
    """An actor of a node, written `node/actor`. A node id holds no slash."""

    node: str
    actor: str

    @classmethod
    def parse(cls, text: str, own_node: str = "") -> Address:
        """Read an address. One without a node, `actor` or `/actor`, means an actor of `own_node`."""
        node, slash, actor = text.partition("/")
        return cls(node or own_node, actor) if slash else cls(own_node, text)

    def __str__(self) -> str:
        return f"{self.node}/{self.actor}"

"""How much of a node's memory a stage gets for keys and values. Pure: bytes in, bytes out."""

from __future__ import annotations

from dataclasses import dataclass, field

PARTS = 2
"""A stage gets one part in so many of what is left. Its engine's own arrays and other models live on the rest."""


@dataclass(frozen=True, slots=True)
class KvRequest:
    """What a shard can use, in bytes: its weights, and for keys and values no less than `least`, no more than `most`.

    `limit` is what the user allows for keys and values, 0 where that is left to us; it goes before `least`.
    """

    weights: int
    least: int
    most: int
    limit: int = 0

    def share(self, rest: int) -> int:
        """Bytes for keys and values where `rest` is left beside the weights."""
        wanted = min(max(rest // PARTS, self.least), self.most)
        return min(wanted, self.limit) if self.limit else wanted


@dataclass(frozen=True, slots=True)
class _Reservation:
    model_id: str
    weights: int
    kv: int


@dataclass(slots=True)
class KvBudget:
    """What a node has promised to the stages that it holds, by instance.

    The operating system counts memory as taken once it is written, so the free memory does not show what stages may
    yet come to use. Whole promises are subtracted, though a part of each may be in use and so be counted twice: too
    little for a new stage makes answers wait, too much ends the node. A stage of the same model does not count, for
    it is being replaced and drains.
    """

    _by_instance: dict[str, _Reservation] = field(default_factory=dict)

    def promise(self, instance_id: str, model_id: str, wish: KvRequest, offer: int) -> int:
        """The bytes for keys and values of a stage about to be loaded, where the node has `offer` bytes free."""
        others = sum(p.weights + p.kv for p in self._by_instance.values() if p.model_id != model_id)
        kv = wish.share(offer - wish.weights - others)
        self._by_instance[instance_id] = _Reservation(model_id, wish.weights, kv)
        return kv

    def loaded(self, instance_id: str) -> None:
        """Its weights are in memory, and what is free has shrunk by them."""
        if promise := self._by_instance.get(instance_id):
            self._by_instance[instance_id] = _Reservation(promise.model_id, 0, promise.kv)

    def ended(self, instance_id: str) -> None:
        """The stage is gone, or never came."""
        self._by_instance.pop(instance_id, None)

"""How much of a node's memory a stage gets for keys and values, what earlier stages have reserved, and how much of it
the prefix cache may hold. In bytes.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

PARTS = 2
"""A stage gets one of this many equal parts of the memory that its weights leave. The rest is for arrays of its engine
and for other models.
"""


CACHE_PARTS = 4
"""The prefix cache of a stage may take one of this many equal parts of the memory that would be free without it."""

FALL, RISE = 15 / 16, 5 / 4
"""The cache's bound changes if memory allows less than FALL of it or more than RISE, so that it does not flicker."""


@dataclass(frozen=True, slots=True)
class KvRequest:
    """What a shard needs, in bytes: its weights, and between `least` and `most` for keys and values.

    `limit` is what the user allows for keys and values (`--kv-memory`), 0 for no limit; it takes precedence over
    `least`.
    """

    weights: int
    least: int
    most: int
    limit: int = 0

    def share(self, rest: int) -> int:
        """Return the bytes for keys and values if `rest` bytes are left beside the weights."""
        wanted = min(max(rest // PARTS, self.least), self.most)
        return min(wanted, self.limit) if self.limit else wanted


@dataclass(frozen=True, slots=True)
class _Reservation:
    model_id: str
    weights: int
    kv: int
    loaded: bool = False


@dataclass(slots=True)
class KvBudget:
    """What a node has reserved for its stages, by instance.

    The operating system counts memory as taken once it is written, so the free memory does not show what stages may
    still come to use. Whole reservations are subtracted, although a part of each may be in use already and is then
    counted twice: too little memory for a new stage makes answers wait, too much kills the node. A stage of the same
    model does not count, because it is being replaced and drains.
    """

    _by_instance: dict[str, _Reservation] = field(default_factory=dict)

    def reserved(self, model_id: str = "") -> int:
        """Return the bytes that all stages may come to hold, weights included, but for those of one model."""
        return sum(r.weights + r.kv for r in self._by_instance.values() if r.model_id != model_id)

    def reserved_for(self, instance_id: str) -> int:
        """Return the bytes that one stage may come to hold, weights included."""
        held = self._by_instance.get(instance_id)
        return held.weights + held.kv if held else 0

    def reserve(self, instance_id: str, model_id: str, request: KvRequest, free: int, limit: int = 0) -> int:
        """Reserve memory for a stage about to be loaded, of the node's `free` bytes.

        All stages together get at most `limit` bytes, if it is not 0. Returns the bytes for its keys and values.
        """
        others = [r for r in self._by_instance.values() if r.model_id != model_id]
        rest = free - sum(r.kv if r.loaded else r.weights + r.kv for r in others)
        if limit:
            rest = min(rest, limit - self.reserved(model_id))
        kv = request.share(rest - request.weights)
        self._by_instance[instance_id] = _Reservation(model_id, request.weights, kv)
        return kv

    def loaded(self, instance_id: str) -> None:
        """Note that a stage's weights are in memory, so that the free memory no longer contains them."""
        if reserved := self._by_instance.get(instance_id):
            self._by_instance[instance_id] = replace(reserved, loaded=True)

    def release(self, instance_id: str) -> None:
        """Free the reservation of a stage that ended or could not be loaded."""
        self._by_instance.pop(instance_id, None)


@dataclass(slots=True)
class CacheBound:
    """The most bytes that a stage may hold in its prefix cache now. It follows the memory that is free."""

    nbytes: int = 0

    def follow(self, free: int, held: int) -> bool:
        """Adapt to `free` bytes of memory while the cache holds `held`. Returns whether the bound has changed."""
        allowed = (free + held) // CACHE_PARTS
        if self.nbytes and self.nbytes * FALL <= allowed <= self.nbytes * RISE:
            return False
        self.nbytes = allowed
        return True

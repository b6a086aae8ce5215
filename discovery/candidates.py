"""Which join ports to dial, and when: beacons and link events in, dials out. The time is passed in.

A beacon only suggests a dial. Whether a node may join is decided in `cluster.membership`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from cluster.failures import FailureCode
from discovery.beacon import Beacon

MAX_CANDIDATES = 256  # a hostile network must not fill our memory
FORGET_AFTER_S = 30.0
FIRST_BACK_OFF_S = 0.5
MAX_BACK_OFF_S = 15.0
REFUSED_S = 30.0
OURSELVES_S = 3600.0
STEADY_S = 5.0
_REFUSALS = frozenset(  # for these, dialling again soon changes nothing
    {FailureCode.WRONG_CODE, FailureCode.REVOKED, FailureCode.UNAPPROVED, FailureCode.DUPLICATE}
)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A join port from a beacon or named by hand (`pinned`: its node is unknown until it has answered a dial)."""

    join_endpoint: str
    node_id: str = ""
    name: str = ""
    incarnation: int = 0
    pinned: bool = False
    seen_at: float = 0.0
    dial_at: float = 0.0
    back_off: float = FIRST_BACK_OFF_S


@dataclass(frozen=True, slots=True)
class Candidates:
    """Candidates by join endpoint, and the linked nodes with the time of each link. `node_id` is our own.

    `dropped` counts beacons that were not accepted, by reason.
    """

    node_id: str
    candidates: Mapping[str, Candidate] = field(default_factory=dict)
    links: Mapping[str, float] = field(default_factory=dict)
    dropped: Mapping[str, int] = field(default_factory=dict)

    def pin(self, join_endpoint: str) -> Candidates:
        """Add a peer named by hand: it is dialled as long as this node runs, with back-off."""
        return self._with(Candidate(join_endpoint, pinned=True))

    def beacon_received(self, beacon: Beacon, now: float) -> Candidates:
        """Add or update the candidate of a genuine, new beacon. Our own beacons come back to us and change nothing."""
        if beacon.node_id == self.node_id:
            return self
        if beacon.leaving:
            held = self.candidates.get(beacon.join_endpoint)
            if held is None or held.pinned or held.node_id != beacon.node_id:
                return self
            return replace(self, candidates={e: c for e, c in self.candidates.items() if c is not held})
        held = self.candidates.get(beacon.join_endpoint) or self._by_node(beacon.node_id)
        if held is None and len(self.candidates) >= MAX_CANDIDATES:
            reason = "too many candidates"
            return replace(self, dropped={**self.dropped, reason: self.dropped.get(reason, 0) + 1})
        return self._updated(held or Candidate(beacon.join_endpoint), beacon, now)

    def due(self, now: float) -> tuple[Candidates, tuple[str, ...]]:
        """Forget nodes without recent beacons, and return the join endpoints to dial now, at most one of each node.

        In the returned candidates the dialled ones are backed off.
        """
        kept = {e: c for e, c in self.candidates.items() if self._is_kept(c, now)}
        waits: dict[str, float] = {}
        dials = []
        for candidate in sorted(kept.values(), key=lambda c: (c.dial_at, c.back_off)):
            node = candidate.node_id or candidate.join_endpoint
            if candidate.dial_at <= now and node not in self.links and node not in waits:
                dials.append(candidate.join_endpoint)
                waits[node] = now + candidate.back_off
                kept[candidate.join_endpoint] = replace(candidate, back_off=min(2 * candidate.back_off, MAX_BACK_OFF_S))
        # A node may be known at several endpoints: the back-off of the one that is dialled holds for all of them.
        paced = {e: replace(c, dial_at=max(c.dial_at, waits.get(c.node_id or e, 0.0))) for e, c in kept.items()}
        return replace(self, candidates=paced), tuple(dials)

    def identified(self, join_endpoint: str, node_id: str, name: str, now: float) -> Candidates:
        """Note which node a dialled join port belongs to. If it is our own, it is not dialled for an hour."""
        held = self.candidates.get(join_endpoint)
        if held is None:
            return self
        dial_at = now + OURSELVES_S if node_id == self.node_id else held.dial_at
        return self._with(replace(held, node_id=node_id, name=name, dial_at=dial_at))

    def refused(self, join_endpoint: str, code: FailureCode, now: float) -> Candidates:
        """Note that a dialled join port refused us. If the code says that this will last, it is dialled later."""
        held = self.candidates.get(join_endpoint)
        if held is None or code not in _REFUSALS:
            return self
        return self._with(replace(held, dial_at=max(held.dial_at, now + REFUSED_S)))

    def linked(self, node_id: str, now: float) -> Candidates:
        """Note that a link to a node is up."""
        return replace(self, links={**self.links, node_id: now})

    def unlinked(self, node_id: str, now: float) -> Candidates:
        """Note that the link to a node is down. It may be dialled again at once, unless the link was short-lived."""
        if node_id not in self.links:
            return self
        steady = now - self.links[node_id] >= STEADY_S
        lost = {e: _lost(c, steady, now) for e, c in self.candidates.items() if c.node_id == node_id}
        links = {n: since for n, since in self.links.items() if n != node_id}
        return replace(self, links=links, candidates={**self.candidates, **lost})

    def _is_kept(self, candidate: Candidate, now: float) -> bool:
        return candidate.pinned or candidate.node_id in self.links or now - candidate.seen_at < FORGET_AFTER_S

    def _by_node(self, node_id: str) -> Candidate | None:
        """Return the candidate that a beacon of this node made. There is at most one: a node has one join port."""
        return next((c for c in self.candidates.values() if c.node_id == node_id and not c.pinned), None)

    def _updated(self, held: Candidate, beacon: Beacon, now: float) -> Candidates:
        """Return the candidates with the held one at the beacon's endpoint.

        Another node there, or another incarnation of the same one, is dialled soon.
        """
        known = (held.node_id, held.incarnation) == (beacon.node_id, beacon.incarnation)
        soon = min(held.dial_at, now + FIRST_BACK_OFF_S)
        timed = held if known else replace(held, dial_at=soon, back_off=FIRST_BACK_OFF_S)
        candidate = replace(
            timed,
            join_endpoint=beacon.join_endpoint,
            node_id=beacon.node_id,
            name=beacon.name,
            incarnation=beacon.incarnation,
            seen_at=now,
        )
        stale = self._by_node(beacon.node_id)
        others = {e: c for e, c in self.candidates.items() if c is not stale}
        return replace(self, candidates={**others, beacon.join_endpoint: candidate})

    def _with(self, candidate: Candidate) -> Candidates:
        return replace(self, candidates={**self.candidates, candidate.join_endpoint: candidate})


def _lost(candidate: Candidate, steady: bool, now: float) -> Candidate:
    if not steady:
        return replace(candidate, seen_at=now)
    return replace(candidate, seen_at=now, dial_at=now, back_off=FIRST_BACK_OFF_S)

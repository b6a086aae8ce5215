"""Who is believed to be out there: beacons and link events in, dials out. Pure; no clock, no sockets.

Trust does not come from here: a beacon only suggests a dial, and a node is a member while its link stands.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from cluster.failures import FailureCode
from discovery.beacon import Beacon

MAX_CANDIDATES = 256  # a hostile network must not fill our memory
FORGET_AFTER_S = 30.0
FIRST_BACK_OFF_S = 0.5
LONGEST_BACK_OFF_S = 15.0
REFUSED_S = 30.0
OURSELVES_S = 3600.0
STEADY_S = 5.0
_REFUSALS = frozenset(  # dialling again soon changes nothing
    {FailureCode.WRONG_CODE, FailureCode.REVOKED, FailureCode.UNAPPROVED, FailureCode.DUPLICATE}
)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A join port heard of, or named by hand (`pinned`; whose it is stays unknown until it answers)."""

    join_endpoint: str
    node_id: str = ""
    name: str = ""
    incarnation: int = 0
    pinned: bool = False
    heard_at: float = 0.0
    dial_at: float = 0.0
    back_off: float = FIRST_BACK_OFF_S


@dataclass(frozen=True, slots=True)
class Candidates:
    """Candidates by join port, and the linked nodes with the time since when. `node_id` is our own."""

    node_id: str
    candidates: Mapping[str, Candidate] = field(default_factory=dict)
    links: Mapping[str, float] = field(default_factory=dict)
    refused: Mapping[str, int] = field(default_factory=dict)

    def pin(self, join_endpoint: str) -> Candidates:
        """Name a peer by hand: it is dialled for ever, with back-off."""
        return self._with(Candidate(join_endpoint, pinned=True))

    def hear(self, beacon: Beacon, now: float) -> Candidates:
        """Take in a beacon that was found genuine and new. Our own come back to us and change nothing."""
        if beacon.node_id == self.node_id:
            return self
        if beacon.leaving:
            return self._without(beacon)
        held = self.candidates.get(beacon.join_endpoint) or self._elsewhere(beacon)
        if held is None and len(self.candidates) >= MAX_CANDIDATES:
            return self._refuse("too many candidates")
        return self._moved(held or Candidate(beacon.join_endpoint), beacon, now)

    def due(self, now: float) -> tuple[Candidates, tuple[str, ...]]:
        """Forget who fell silent, and return the join ports to dial now, one a node; they are backed off in the
        result.
        """
        kept = {g: c for g, c in self.candidates.items() if self._is_kept(c, now)}
        waits: dict[str, float] = {}
        dials = []
        for candidate in sorted(kept.values(), key=lambda c: (c.dial_at, c.back_off)):
            whose = candidate.node_id or candidate.join_endpoint
            if candidate.dial_at <= now and whose not in self.links and whose not in waits:
                dials.append(candidate.join_endpoint)
                waits[whose] = now + candidate.back_off
                kept[candidate.join_endpoint] = replace(
                    candidate, back_off=min(2 * candidate.back_off, LONGEST_BACK_OFF_S)
                )
        paced = {g: replace(c, dial_at=max(c.dial_at, waits.get(c.node_id or g, 0.0))) for g, c in kept.items()}
        return replace(self, candidates=paced), tuple(dials)

    def met(self, join_endpoint: str, node_id: str, name: str, now: float) -> Candidates:
        """A join port that was dialled belongs to this node. Where that is ourselves, it is left alone for long."""
        held = self.candidates.get(join_endpoint)
        if held is None:
            return self
        dial_at = now + OURSELVES_S if node_id == self.node_id else held.dial_at
        return self._with(replace(held, node_id=node_id, name=name, dial_at=dial_at))

    def turned_away(self, join_endpoint: str, code: FailureCode, now: float) -> Candidates:
        """A join port that was dialled did not let us in."""
        held = self.candidates.get(join_endpoint)
        if held is None or code not in _REFUSALS:
            return self
        return self._with(replace(held, dial_at=max(held.dial_at, now + REFUSED_S)))

    def linked(self, node_id: str, now: float) -> Candidates:
        """A link to a node stands."""
        return replace(self, links={**self.links, node_id: now})

    def unlinked(self, node_id: str, now: float) -> Candidates:
        """The link to a node is gone. It may be dialled again at once, unless it never stood for long."""
        if node_id not in self.links:
            return self
        steady = now - self.links[node_id] >= STEADY_S
        lost = {g: _lost(c, steady, now) for g, c in self.candidates.items() if c.node_id == node_id}
        links = {n: since for n, since in self.links.items() if n != node_id}
        return replace(self, links=links, candidates={**self.candidates, **lost})

    def standing(self, node_ids: Iterable[str], now: float) -> Candidates:
        """These links stand and no other: our hub says so, after one of us began anew."""
        stand = set(node_ids)
        membership = self
        for node_id in set(self.links) - stand:
            membership = membership.unlinked(node_id, now)
        for node_id in stand - set(self.links):
            membership = membership.linked(node_id, now)
        return membership

    def _is_kept(self, candidate: Candidate, now: float) -> bool:
        return candidate.pinned or candidate.node_id in self.links or now - candidate.heard_at < FORGET_AFTER_S

    def _elsewhere(self, beacon: Beacon) -> Candidate | None:
        """What we know of the beacon's node under another address: a node has one join port."""
        return next((c for c in self.candidates.values() if c.node_id == beacon.node_id and not c.pinned), None)

    def _moved(self, held: Candidate, beacon: Beacon, now: float) -> Candidates:
        """What was held is now at the beacon's join port; another node, or another life of it, is worth a dial soon."""
        known = (held.node_id, held.incarnation) == (beacon.node_id, beacon.incarnation)
        soon = min(held.dial_at, now + FIRST_BACK_OFF_S)
        timed = held if known else replace(held, dial_at=soon, back_off=FIRST_BACK_OFF_S)
        candidate = replace(
            timed,
            join_endpoint=beacon.join_endpoint,
            node_id=beacon.node_id,
            name=beacon.name,
            incarnation=beacon.incarnation,
            heard_at=now,
        )
        stale = self._elsewhere(beacon)
        others = {g: c for g, c in self.candidates.items() if c is not stale}
        return replace(self, candidates={**others, beacon.join_endpoint: candidate})

    def _with(self, candidate: Candidate) -> Candidates:
        return replace(self, candidates={**self.candidates, candidate.join_endpoint: candidate})

    def _without(self, beacon: Beacon) -> Candidates:
        held = self.candidates.get(beacon.join_endpoint)
        if held is None or held.pinned or held.node_id != beacon.node_id:
            return self
        return replace(self, candidates={g: c for g, c in self.candidates.items() if c is not held})

    def _refuse(self, reason: str) -> Candidates:
        return replace(self, refused={**self.refused, reason: self.refused.get(reason, 0) + 1})


def _lost(candidate: Candidate, steady: bool, now: float) -> Candidate:
    if not steady:
        return replace(candidate, heard_at=now)
    return replace(candidate, heard_at=now, dial_at=now, back_off=FIRST_BACK_OFF_S)

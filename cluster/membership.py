"""Who is believed to be out there: beacons and link events in, dials out. Pure; no clock, no sockets.

Trust does not come from here: a beacon only suggests a dial, and a node is a member while its link stands.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import msgspec

MAX_CANDIDATES = 256  # a hostile network must not fill our memory
FORGET_AFTER_S = 30.0
FIRST_BACK_OFF_S = 0.5
LONGEST_BACK_OFF_S = 15.0


class Beacon(msgspec.Struct, frozen=True):
    """What a node says to strangers: who it is and where its hub listens. `leaving` is its goodbye."""

    cluster: str
    version: int
    node_id: str
    name: str
    incarnation: int
    endpoint: str
    leaving: bool = False


@dataclass(frozen=True, slots=True)
class Candidate:
    """A node heard of, or named by hand (`pinned`; its id is unknown until its hub answers)."""

    endpoint: str
    node_id: str = ""
    name: str = ""
    pinned: bool = False
    linked: bool = False
    heard_at: float = 0.0
    dial_at: float = 0.0
    back_off: float = FIRST_BACK_OFF_S


@dataclass(frozen=True, slots=True)
class Membership:
    """Candidates by endpoint. `node_id` is our own; our own beacons come back to us and are dropped."""

    node_id: str
    cluster: str
    version: int
    candidates: Mapping[str, Candidate] = field(default_factory=dict)
    refused: Mapping[str, int] = field(default_factory=dict)

    def pin(self, endpoint: str) -> Membership:
        """Name a peer by hand: it is dialled for ever, with back-off."""
        return self._keep(Candidate(endpoint, pinned=True))

    def hear(self, beacon: Beacon, now: float) -> Membership:
        """Take in a beacon. Foreign clusters and versions are counted in `refused`, never dialled."""
        if beacon.node_id == self.node_id:
            return self
        reason = self._refusal(beacon)
        if reason:
            return replace(self, refused={**self.refused, reason: self.refused.get(reason, 0) + 1})
        if beacon.leaving:
            return self._drop(beacon)
        held = self.candidates.get(beacon.endpoint, Candidate(beacon.endpoint, dial_at=now))
        return self._keep(replace(held, node_id=beacon.node_id, name=beacon.name, heard_at=now))

    def due(self, now: float) -> tuple[Membership, tuple[str, ...]]:
        """Forget who fell silent, and return the endpoints to dial now; each is backed off in the result."""
        kept = {e: c for e, c in self.candidates.items() if c.pinned or c.linked or now - c.heard_at < FORGET_AFTER_S}
        linked = {c.node_id for c in kept.values() if c.linked}
        dials = tuple(e for e, c in kept.items() if c.node_id not in linked and not c.linked and c.dial_at <= now)
        for endpoint in dials:
            kept[endpoint] = _backed_off(kept[endpoint], now)
        return replace(self, candidates=kept), dials

    def linked(self, endpoint: str, node_id: str) -> Membership:
        """A link to `endpoint` stands."""
        held = self.candidates.get(endpoint)
        if held is None:
            return self
        return self._keep(replace(held, node_id=node_id, linked=True, back_off=FIRST_BACK_OFF_S))

    def unlinked(self, node_id: str, now: float) -> Membership:
        """The link to a node is gone; it may be dialled again at once."""
        lost = {
            e: replace(c, linked=False, dial_at=now, heard_at=now) if c.node_id == node_id and c.linked else c
            for e, c in self.candidates.items()
        }
        return replace(self, candidates=lost)

    def unlinked_all(self, now: float) -> Membership:
        """Our hub began anew: no link stands."""
        lost = {
            e: replace(c, linked=False, dial_at=now, heard_at=now) if c.linked else c
            for e, c in self.candidates.items()
        }  # fmt: skip
        return replace(self, candidates=lost)

    def _refusal(self, beacon: Beacon) -> str:
        if beacon.cluster != self.cluster:
            return "another cluster"
        if beacon.version != self.version:
            return "another protocol version"
        if not beacon.endpoint.startswith("tcp://"):
            return "no end point"
        full = len(self.candidates) >= MAX_CANDIDATES and beacon.endpoint not in self.candidates
        return "too many candidates" if full else ""

    def _keep(self, candidate: Candidate) -> Membership:
        return replace(self, candidates={**self.candidates, candidate.endpoint: candidate})

    def _drop(self, beacon: Beacon) -> Membership:
        held = self.candidates.get(beacon.endpoint)
        if held is None or held.pinned or held.node_id != beacon.node_id:
            return self
        return replace(self, candidates={e: c for e, c in self.candidates.items() if c is not held})


def _backed_off(candidate: Candidate, now: float) -> Candidate:
    wait = candidate.back_off
    return replace(candidate, dial_at=now + wait, back_off=min(2 * wait, LONGEST_BACK_OFF_S))

"""The matrix of faults: its cells, their names, and which of them a run takes. Knows no process."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from fnmatch import fnmatchcase
from itertools import product

CENSUS_AFTER_S = 10.0  # after the end of a fault: what is left over then stays
_USUAL_CENSUS_S = 3.0  # nothing is left over earlier in most cells
_KILLED_AFTER_S = 7.0  # a frozen process has ended by then, as its supervisor has killed it
QUIET_S = 5.0


class Target(StrEnum):
    """What a fault hits: one process of the victim, all of them (`NODE`), or its cable."""

    HUB = "hub"
    NODE_ACTOR = "node-actor"
    GATEWAY = "gateway"
    TOPOLOGY = "topology"
    DISCOVERY = "discovery"
    DOWNLOAD = "download"
    ENGINE = "engine"
    SUPERVISOR = "supervisor"
    NODE = "node"
    CABLE = "cable"


class Place(StrEnum):
    """A node of a ring, by its stage."""

    FIRST = "first"
    MIDDLE = "middle"
    LAST = "last"


class Load(StrEnum):
    """What clients do: streams run, or nothing; `QUIET` is followed by QUIET_S seconds without a request."""

    STREAM = "stream"
    IDLE = "idle"
    QUIET = "quiet"


@dataclass(frozen=True, slots=True)
class Fault:
    """A kind of fault (`kill`: -9, `stop`: SIGSTOP, `cut`: the link is down) and its seconds; a kill has none."""

    kind: str
    seconds: float = 0.0

    def __str__(self) -> str:
        return f"{self.kind}{self.seconds:g}" if self.seconds else self.kind


KILL = Fault("kill")
FAULTS = (KILL, Fault("stop", 3.0), Fault("stop", 30.0))
CUTS = (Fault("cut", 3.0), Fault("cut", 30.0))


@dataclass(frozen=True, slots=True)
class Layout:
    """A ring that several cells can share: its nodes, the place of the placer, and whether a cable runs through it."""

    nodes: int
    placer: Place
    cable: bool = False

    @property
    def places(self) -> tuple[Place, ...]:
        """The places of the ring, in order."""
        return tuple(Place) if self.nodes == 3 else (Place.FIRST, Place.LAST)


@dataclass(frozen=True, slots=True)
class Cell:
    """One fault on one ring under one load. The victim is the node at `place`, which may be the placer."""

    nodes: int
    place: Place
    target: Target
    placer: bool
    fault: Fault
    load: Load

    @property
    def name(self) -> str:
        """The name by which a run chooses cells."""
        role = "placer" if self.placer else "member"
        return f"ring{self.nodes}-{self.place}-{role}-{self.target}-{self.fault}-{self.load}"

    @property
    def layout(self) -> Layout:
        """The ring that the cell needs. If the victim is not the placer, another node is, always the same one."""
        others = (place for place in Layout(self.nodes, self.place).places if place is not self.place)
        return Layout(self.nodes, self.place if self.placer else next(others), self.target is Target.CABLE)

    @property
    def other(self) -> Place:
        """The place of the other gateway that is asked: that of a stage next to the victim's."""
        return Place.LAST if self.place is Place.FIRST else Place.FIRST

    @property
    def ends_node(self) -> bool:
        """Whether the victim's node has ended after the fault, and its gateway with it."""
        return self.fault == KILL and self.target in (Target.SUPERVISOR, Target.NODE)

    @property
    def expected_s(self) -> float:
        """About how long the cell takes."""
        before = {Load.STREAM: 2.0, Load.IDLE: 0.0, Load.QUIET: QUIET_S}[self.load]
        lasts = self.target in (Target.SUPERVISOR, Target.NODE, Target.CABLE)
        during = self.fault.seconds if lasts else min(self.fault.seconds, _KILLED_AFTER_S)
        return before + during + _USUAL_CENSUS_S + 4.0


_BOTH = (True, False)
_ALONE = (Target.GATEWAY, Target.DISCOVERY, Target.DOWNLOAD)
"""Actors that have no part in placing a model: it makes no difference whether the victim is the placer."""


def _victims() -> Iterator[tuple[int, Place, Target, bool]]:
    """Yield ring, place, target and role of all victims."""
    first, middle, last = Place
    yield from product((2,), (first, last), (Target.HUB, Target.NODE, Target.ENGINE), _BOTH)
    for target in (Target.NODE_ACTOR, Target.TOPOLOGY, Target.SUPERVISOR):
        yield from ((2, first, target, True), (2, last, target, False))
    yield from product((2,), (first,), _ALONE, (True,))
    yield from product((3,), Place, (Target.ENGINE,), _BOTH)
    yield from product((3,), (middle,), (Target.HUB, Target.NODE), _BOTH)
    yield from product((3,), (middle,), (Target.NODE_ACTOR, Target.TOPOLOGY, Target.SUPERVISOR), (True,))
    yield from product((3,), (middle,), _ALONE, (False,))


def matrix() -> tuple[Cell, ...]:
    """Return all cells. After a fault of hubs and nodes, on which placements depend, there are also quiet ones."""
    loads = (Load.STREAM, Load.IDLE)
    victims = list(_victims())
    linked = [victim for victim in victims if victim[2] in (Target.HUB, Target.NODE)]
    hit = (*product(victims, FAULTS, loads), *product(linked, FAULTS[:2], (Load.QUIET,)))
    cells = [Cell(nodes, place, target, placer, *how) for (nodes, place, target, placer), *how in hit]
    cells.append(Cell(2, Place.FIRST, Target.GATEWAY, True, Fault("stop", 4.0), Load.STREAM))
    cuts = product((2, 3), CUTS, loads)
    return (*cells, *(Cell(nodes, Place.LAST, Target.CABLE, False, cut, load) for nodes, cut, load in cuts))


WORST = (
    "ring2-first-placer-hub-kill-quiet",
    "ring2-first-placer-node-stop3-quiet",
    "ring2-first-placer-engine-stop3-idle",
    "ring2-first-placer-gateway-stop4-stream",
    "ring2-first-member-hub-kill-stream",
    "ring2-last-member-cable-cut3-stream",
)
"""The cells that continuous integration runs: one for each way in which a ring once stayed out of service."""


def chosen(cells: Sequence[Cell], patterns: str) -> tuple[Cell, ...]:
    """Return the cells with names that match one of the patterns, separated by commas; all if there is none.

    A pattern is a name with `*` and `?`. Raises ValueError for one that no name matches.
    """
    wanted = [pattern.strip() for pattern in patterns.split(",") if pattern.strip()]
    for pattern in wanted:
        if not any(fnmatchcase(cell.name, pattern) for cell in cells):
            raise ValueError(
                f"no cell is named {pattern}; names are such as {cells[0].name}, and * stands for any part"
            )
    return tuple(cell for cell in cells if not wanted or any(fnmatchcase(cell.name, each) for each in wanted))


def drawn(cells: Sequence[Cell], count: int, seed: int) -> tuple[Cell, ...]:
    """Draw `count` cells, the same for the same seed, in the order of the matrix. 0 draws all."""
    if not count or count >= len(cells):
        return tuple(cells)
    return tuple(cells[at] for at in sorted(random.Random(seed).sample(range(len(cells)), count)))


def batches(cells: Iterable[Cell], rings: int) -> list[tuple[Cell, ...]]:
    """Divide the cells into batches for `rings` rings side by side. A batch has one layout; the longest comes first.

    The cells of a batch alternate between targets, so that no process dies several times in a row: a supervisor pauses
    longer after each of its deaths.
    """
    by_layout: dict[Layout, list[Cell]] = {}
    for cell in cells:
        by_layout.setdefault(cell.layout, []).append(cell)
    share = sum(cell.expected_s for group in by_layout.values() for cell in group) / rings
    found = []
    for group in by_layout.values():
        parts = min(-(-int(expected_s(group)) // max(int(share), 1)), len(group))
        found += [tuple(alternating(group[part::parts])) for part in range(parts)]
    return sorted(found, key=expected_s, reverse=True)


def alternating(cells: Sequence[Cell]) -> list[Cell]:
    """Order cells so that those of one target on one node lie far apart."""
    seen: dict[tuple[Place, Target], int] = {}
    rounds = []
    for cell in cells:
        seen[cell.place, cell.target] = number = seen.get((cell.place, cell.target), -1) + 1
        rounds.append(number)
    return [cells[at] for at in sorted(range(len(cells)), key=lambda at: rounds[at])]


def expected_s(cells: Iterable[Cell]) -> float:
    """Return about how long the cells take, one after the other."""
    return sum(cell.expected_s for cell in cells)

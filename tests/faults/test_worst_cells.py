"""A short draw of `make faults` on real rings: the faults after which a ring once stayed out of service."""

from __future__ import annotations

import pytest

from tests.faults.cells import WORST, Cell, batches, chosen, matrix
from tests.faults.driver import Run, run
from tests.faults.model import write_model
from tests.faults.seen import CellSeen, misses

RINGS = 2  # for the layout that most of the cells have; the others have one each
PATIENCE_S = 5.0

pytestmark = pytest.mark.timeout(300)  # a minute if all is well, and half a minute more for each ring that stays out


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Cell, CellSeen]]:
    """Run all cells, several rings at a time, and return what was seen of each."""
    cells = chosen(matrix(), ",".join(WORST))
    parts = batches(cells, RINGS)
    shared = Run(write_model(tmp_path_factory.mktemp("model") / "cards"), patience_s=PATIENCE_S)
    results = run(parts, len(parts), shared)
    return {cell.name: (cell, result) for cell, result in results}


@pytest.mark.parametrize("name", WORST)
def test_clients_and_ring_recover(name: str, seen: dict[str, tuple[Cell, CellSeen]]) -> None:
    cell, result = seen[name]
    if result.skipped:
        pytest.skip(result.skipped)
    missed = misses(cell, result)
    assert not missed, "; ".join(missed)

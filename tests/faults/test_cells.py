"""The matrix: every fault is in it once, names choose cells, and batches take all of them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.faults.cells import (
    CUTS,
    FAULTS,
    WORST,
    Cell,
    Load,
    Place,
    Target,
    alternating,
    batches,
    chosen,
    drawn,
    expected_s,
    matrix,
)

CELLS = matrix()


def test_every_cell_has_its_own_name() -> None:
    assert len({cell.name for cell in CELLS}) == len(CELLS)


@pytest.mark.parametrize("nodes", [2, 3])
@pytest.mark.parametrize("load", [Load.STREAM, Load.IDLE])
@pytest.mark.parametrize("target", Target)
def test_every_target_meets_every_fault(nodes: int, load: Load, target: Target) -> None:
    found = {cell.fault for cell in CELLS if (cell.nodes, cell.load, cell.target) == (nodes, load, target)}
    assert found >= set(CUTS if target is Target.CABLE else FAULTS)


@pytest.mark.parametrize("nodes", [2, 3])
@pytest.mark.parametrize("target", [Target.HUB, Target.NODE, Target.ENGINE])
def test_victims_are_placers_and_others(nodes: int, target: Target) -> None:
    assert {cell.placer for cell in CELLS if (cell.nodes, cell.target) == (nodes, target)} == {True, False}


def test_engines_of_all_stages_are_victims() -> None:
    assert {cell.place for cell in CELLS if cell.nodes == 3 and cell.target is Target.ENGINE} == set(Place)


def test_layouts_fit_their_cells() -> None:
    for cell in CELLS:
        assert {cell.place, cell.other, cell.layout.placer} <= set(cell.layout.places), cell.name
        assert cell.place is not cell.other
        assert (cell.layout.placer is cell.place) == cell.placer, cell.name


def test_names_and_patterns_choose_cells() -> None:
    assert [cell.name for cell in chosen(CELLS, ",".join(WORST))] == [c.name for c in CELLS if c.name in WORST]
    assert {cell.nodes for cell in chosen(CELLS, "ring3-*")} == {3}
    assert chosen(CELLS, "") == CELLS
    with pytest.raises(ValueError, match="no cell is named ring9"):
        chosen(CELLS, "ring2-*, ring9")


@given(st.integers(1, len(CELLS)), st.integers())
def test_draw_depends_on_the_seed_alone(count: int, seed: int) -> None:
    cells = drawn(CELLS, count, seed)
    assert cells == drawn(CELLS, count, seed)
    assert len(set(cells)) == count


@given(st.lists(st.sampled_from(CELLS), min_size=1, unique=True), st.integers(1, 16))
def test_batches_hold_every_cell_once_and_one_layout_each(cells: list[Cell], rings: int) -> None:
    parts = batches(cells, rings)
    assert sorted(cell.name for part in parts for cell in part) == sorted(cell.name for cell in cells)
    assert all(len({cell.layout for cell in part}) == 1 for part in parts)


def test_whole_matrix_takes_less_than_20_minutes() -> None:
    parts = batches(CELLS, 10)
    assert max(expected_s(part) for part in parts) < 1200
    assert sum(expected_s(part) for part in parts) / 10 < 900


def test_cells_of_one_process_lie_apart() -> None:
    hubs = [cell for cell in CELLS if cell.target is Target.HUB and cell.place is Place.FIRST][:3]
    engines = [cell for cell in CELLS if cell.target is Target.ENGINE and cell.place is Place.LAST][:3]
    targets = [cell.target for cell in alternating([*hubs, *engines])]
    assert targets == [Target.HUB, Target.ENGINE] * 3

"""Every row of a batch has its place in the padded one."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from engines.onnx.batch_layout import Padding, lay_out


@given(st.permutations(range(12)), st.integers(1, 12), st.sampled_from([1, 3]))
def test_every_row_is_in_its_entry_and_step(entries: list[int], chunks: int, steps: int) -> None:
    used = entries[:chunks]
    layout = lay_out(tuple(used), steps, Padding())
    for chunk, entry in enumerate(used):
        for step in range(steps):
            row = chunk * steps + step
            assert layout.pad_index[entry - layout.first, step] == row
            assert layout.unpad_index[row].tolist() == [entry - layout.first, step]
    assert sorted([*used, *layout.idle]) == list(range(layout.first, layout.end))


@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 3))
def test_few_rows_are_padded_with_copies_of_the_first(chunks: int, steps: int, fewest: int) -> None:
    layout = lay_out(tuple(range(chunks)), steps, Padding(spare_step=False, rows=fewest))
    assert layout.pad_index.shape == (chunks, steps)
    assert len(layout.unpad_index) == max(chunks * steps, fewest)
    assert layout.unpad_index[chunks * steps :].tolist() == [[0, 0]] * layout.copies


def test_only_a_lone_row_gets_a_spare_step() -> None:
    assert [lay_out((0,), 1, Padding(spare)).pad_index.shape for spare in (True, False)] == [(1, 2), (1, 1)]
    assert lay_out((0, 1), 1, Padding()).pad_index.shape == (2, 1)

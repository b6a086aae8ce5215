"""Every row of a batch has its place in the padded one."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from engines.onnx.batch_layout import lay_out


@given(st.permutations(range(12)), st.integers(1, 12), st.sampled_from([1, 3]))
def test_every_row_is_in_its_entry_and_step(entries: list[int], chunks: int, steps: int) -> None:
    used = entries[:chunks]
    layout = lay_out(tuple(used), steps)
    for chunk, entry in enumerate(used):
        for step in range(steps):
            row = chunk * steps + step
            assert layout.pad_index[entry - layout.first, step] == row
            assert layout.unpad_index[row].tolist() == [entry - layout.first, step]
    assert sorted([*used, *layout.idle]) == list(range(layout.first, layout.end))

"""`gateway.core.token_log`: each token once, in order."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.token_log import TokenGap, TokenLog


@given(st.lists(st.integers(0, 9), max_size=60))
def test_log_accepts_each_index_once_in_order(indices: list[int]) -> None:
    log = TokenLog()
    for index in indices:
        due = len(log.tokens)
        if index > due:
            with pytest.raises(TokenGap, match=f"token {index} came instead of {due}"):
                log.accept(index, 100 + index)
        else:
            assert log.accept(index, 100 + index) == (index == due)
    assert log.tokens == [100 + index for index in range(len(log.tokens))]

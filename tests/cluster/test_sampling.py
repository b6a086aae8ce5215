"""`cluster.sampling`: the bounds of the parameters."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from cluster.sampling import SamplingParams


@pytest.mark.parametrize(
    ("field", "value"),
    [("temperature", -0.1), ("temperature", np.nan), ("top_p", 1.5), ("top_k", -1), ("min_p", -1.0), ("seed", 2**64)],
)
def test_parameter_out_of_range_is_named(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=field):
        msgspec.structs.replace(SamplingParams(), **{field: value})

"""What an ONNX Runtime session keeps, and how many threads it has."""

from __future__ import annotations

import numpy as np
import pytest

from common.machine import cores
from engines.onnx.graph import Graph
from engines.onnx.shard_model import new_session


def test_session_keeps_its_own_copy_of_the_weights() -> None:
    graph = Graph()
    rows = graph.input("rows", np.float32, ("rows", 64))
    matrix, added = np.eye(64, dtype=np.float32), np.ones(64, np.float32)
    product = graph.node("Gemm", rows, graph.weight(matrix), transB=1)
    graph.nodes("Add", product, graph.weight(added), outputs=[graph.output("output", ("rows", 64))])
    opened = new_session(graph)
    for array in graph.weights.values():
        array[...] = 0
    given = np.arange(64, dtype=np.float32)[None]
    np.testing.assert_array_equal(opened.run(["output"], {"rows": given})[0], given + 1)


@pytest.mark.parametrize(("setting", "threads"), [("3", 3), ("", cores()), ("2,1", cores())])
def test_session_takes_its_threads_from_the_environment(
    setting: str, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", setting)
    graph = Graph()
    graph.nodes("Neg", graph.input("rows", np.float32, (1,)), outputs=[graph.output("output", (1,))])
    assert new_session(graph).get_session_options().intra_op_num_threads == threads

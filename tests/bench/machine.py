"""The machine: pins processes to cores, and measures the limits of one core. Knows no engine."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from statistics import median

import numpy as np
import psutil

ROUNDS = 7
READ_BYTES = 400_000_000  # many times the size of usual caches
SIDE = 2048


def load_sentence() -> str:
    """Return the machine's load before a measurement in a sentence: other load changes every figure."""
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    return f"the machine has {cores} cores; its load before the measurement was {load:.1f}"


def pin(pid: int, core: int) -> None:
    """Keep all threads of a process, and those that they start later, on one core, if the system can."""
    _keep((thread.id for thread in psutil.Process(pid).threads()), core)


def pin_busiest(pid: int, core: int) -> None:
    """Keep only the thread with the most processor time so far on one core.

    A message wakes threads of libzmq that only pass it on. On the core of the computing thread they would have to wait,
    while other cores are idle.
    """
    busiest = max(psutil.Process(pid).threads(), key=lambda thread: thread.user_time + thread.system_time)
    _keep([busiest.id], core)


def _keep(threads: Iterable[int], core: int) -> None:
    if hasattr(os, "sched_setaffinity"):
        usable = sorted(os.sched_getaffinity(0))
        for thread in threads:
            os.sched_setaffinity(thread, {usable[core % len(usable)]})


def read_bytes_per_s() -> float:
    """Measure how fast one core reads memory in order: a vector of 400 MB times itself, the best round."""
    vector = np.ones(READ_BYTES // 4, np.float32)
    return READ_BYTES / min(_seconds(lambda: np.dot(vector, vector)) for _ in range(ROUNDS))


def int8_products_per_s() -> float:
    """Measure multiply-adds per second of one core in a large product of 8-bit integers by ONNX Runtime: the median."""
    import onnx
    import onnxruntime

    tensors = [
        onnx.helper.make_tensor_value_info(name, kind, [SIDE, SIDE])
        for name, kind in (("a", onnx.TensorProto.UINT8), ("c", onnx.TensorProto.INT32))
    ]
    matrix = onnx.numpy_helper.from_array(np.ones((SIDE, SIDE), np.int8), "b")  # a constant, so that it is packed once
    node = onnx.helper.make_node("MatMulInteger", ["a", "b"], ["c"])
    graph = onnx.helper.make_graph([node], "product", tensors[:1], tensors[1:], [matrix])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=9)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    rows = np.ones((SIDE, SIDE), np.uint8)
    return SIDE**3 / median(_seconds(lambda: session.run(None, {"a": rows})) for _ in range(ROUNDS))


def _seconds(work: Callable[[], object]) -> float:
    """Time `work` by the processor time of this process, which other processes do not add to."""
    begun = time.process_time()
    work()
    return time.process_time() - begun

"""One ONNX graph in the making: nodes, and weights that stay outside of its bytes. Knows no model and no runtime."""

from __future__ import annotations

from collections.abc import Sequence
from mmap import mmap

import numpy as np
import onnx
from onnx import helper

from engines.engine import Array

STANDARD, CONTRIBUTED = "", "com.microsoft"
OPSET, CONTRIBUTED_OPSET, IR_VERSION = 21, 1, 10
"""Old enough for every onnxruntime since 1.20."""


class Graph:
    """Names come with each node. The weights are given to the runtime as arrays: a protobuf ends at 2 GB."""

    def __init__(self) -> None:
        self.weights: dict[str, Array] = {}
        self._nodes: list[onnx.NodeProto] = []
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []
        self._initializers: list[onnx.TensorProto] = []

    def input(self, name: str, dtype: type[np.generic], shape: Sequence[str | int]) -> str:
        """Declare what every run brings; a string in `shape` is a size that may change."""
        self._inputs.append(_value(name, dtype, shape))
        return name

    def output(self, name: str, shape: Sequence[str | int]) -> str:
        """Declare what every run answers, float32."""
        self._outputs.append(_value(name, np.float32, shape))
        return name

    def weight(self, array: Array) -> str:
        """A constant of any size: for the graph it is a file of that name, which the runtime gets as an array."""
        name = f"weight_{len(self._initializers)}"
        stub = onnx.TensorProto(name=name, dims=array.shape, data_type=helper.np_dtype_to_tensor_dtype(array.dtype))
        stub.data_location = onnx.TensorProto.EXTERNAL
        for key, value in (("location", name), ("offset", "0"), ("length", str(array.nbytes))):
            stub.external_data.add(key=key, value=value)
        self._initializers.append(stub)
        self.weights[name] = _mapped(array)
        return name

    def constant(self, *values: int) -> str:
        """A small int64 vector, written into the graph: shapes and axes must be known when it is read."""
        name = f"constant_{len(self._initializers)}"
        self._initializers.append(helper.make_tensor(name, onnx.TensorProto.INT64, (len(values),), values))
        return name

    def scalar(self, value: float) -> str:
        """One float32 number, written into the graph."""
        name = f"constant_{len(self._initializers)}"
        self._initializers.append(helper.make_tensor(name, onnx.TensorProto.FLOAT, (), (value,)))
        return name

    def node(self, operator: str, *inputs: str, domain: str = STANDARD, **attributes: int | float) -> str:
        """A node with one output; answers its name."""
        return self.nodes(operator, *inputs, outputs=(f"value_{len(self._nodes)}",), domain=domain, **attributes)[0]

    def nodes(
        self,
        operator: str,
        *inputs: str,
        outputs: Sequence[str],
        domain: str = STANDARD,
        **attributes: int | float,
    ) -> Sequence[str]:
        """A node with the outputs named; answers their names."""
        self._nodes.append(helper.make_node(operator, inputs, outputs, domain=domain, **attributes))
        return outputs

    def serialized(self) -> bytes:
        """The model without its weights."""
        graph = helper.make_graph(self._nodes, "shard", self._inputs, self._outputs, self._initializers)
        opsets = [helper.make_opsetid(STANDARD, OPSET), helper.make_opsetid(CONTRIBUTED, CONTRIBUTED_OPSET)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="exobus")
        return bytes(model.SerializeToString())


def _mapped(array: Array) -> Array:
    """A copy in pages of its own, which go back to the system when it is dropped; malloc would keep many of them."""
    copy = np.frombuffer(mmap(-1, array.nbytes), array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def _value(name: str, dtype: type[np.generic], shape: Sequence[str | int]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), shape)

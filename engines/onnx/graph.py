"""Builds an ONNX graph: nodes, and weights that stay outside of its bytes. Knows no model and no runtime."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from mmap import MAP_ANONYMOUS, MAP_PRIVATE, mmap

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper

STANDARD, CONTRIBUTED = "", "com.microsoft"
OPSET, CONTRIBUTED_OPSET, IR_VERSION = 21, 1, 10
"""Every onnxruntime since 1.20 supports these."""


class Graph:
    """A graph that grows node by node; each method returns the names of the values that it adds.

    `weights` goes to the runtime as arrays, since a protobuf message cannot exceed 2 GB.
    """

    def __init__(self) -> None:
        self.weights: dict[str, np.ndarray] = {}
        self._nodes: list[onnx.NodeProto] = []
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []
        self._initializers: list[onnx.TensorProto] = []

    def input(self, name: str, dtype: type[np.generic], shape: Sequence[str | int]) -> str:
        """Declare an input of every run. A string in `shape` names a size that may change."""
        self._inputs.append(_value(name, dtype, shape))
        return name

    def output(self, name: str, shape: Sequence[str | int]) -> str:
        """Declare a float32 output of every run."""
        self._outputs.append(_value(name, np.float32, shape))
        return name

    def weight(self, array: np.ndarray) -> str:
        """Add a constant of any size. To the graph it is a file of that name, which the runtime gets as an array."""
        name, copy = self.empty_weight(array.shape, array.dtype)
        copy[...] = array
        return name

    def empty_weight(self, shape: Sequence[int], dtype: npt.DTypeLike) -> tuple[str, np.ndarray]:
        """Add a constant of zeros, which may be written until the graph is used."""
        name, dtype = f"weight_{len(self._initializers)}", np.dtype(dtype)
        nbytes = prod(shape) * dtype.itemsize
        stub = onnx.TensorProto(name=name, dims=shape, data_type=helper.np_dtype_to_tensor_dtype(dtype))
        stub.data_location = onnx.TensorProto.EXTERNAL
        for key, value in (("location", name), ("offset", "0"), ("length", str(nbytes))):
            stub.external_data.add(key=key, value=value)
        self._initializers.append(stub)
        # Memory in its own pages returns to the system when it is dropped; malloc would keep much of it.
        pages = mmap(-1, nbytes, MAP_PRIVATE | MAP_ANONYMOUS)
        array = np.frombuffer(pages, dtype).reshape(shape)
        self.weights[name] = array
        return name, array

    def constant(self, *values: int) -> str:
        """Add a small int64 vector to the graph itself: shapes and axes must be known when the graph is read."""
        name = f"constant_{len(self._initializers)}"
        self._initializers.append(helper.make_tensor(name, onnx.TensorProto.INT64, (len(values),), values))
        return name

    def scalar(self, value: float) -> str:
        """Add one float32 number to the graph itself."""
        name = f"constant_{len(self._initializers)}"
        self._initializers.append(helper.make_tensor(name, onnx.TensorProto.FLOAT, (), (value,)))
        return name

    def node(self, operator: str, *inputs: str, domain: str = STANDARD, **attributes: int | float | str) -> str:
        """Add a node with one output, and return the output's name."""
        return self.nodes(operator, *inputs, outputs=(f"value_{len(self._nodes)}",), domain=domain, **attributes)[0]

    def nodes(
        self,
        operator: str,
        *inputs: str,
        outputs: Sequence[str],
        domain: str = STANDARD,
        **attributes: int | float | str,
    ) -> Sequence[str]:
        """Add a node with named outputs, and return their names."""
        self._nodes.append(helper.make_node(operator, inputs, outputs, domain=domain, **attributes))
        return outputs

    def attributes(self, operator: str, name: str) -> list[int]:
        """List the values of an attribute in the nodes of an operator, in the order in which they were added."""
        nodes = (node for node in self._nodes if node.op_type == operator)
        return [attribute.i for node in nodes for attribute in node.attribute if attribute.name == name]

    def serialized(self) -> bytes:
        """Serialize the model without its weights."""
        graph = helper.make_graph(self._nodes, "shard", self._inputs, self._outputs, self._initializers)
        opsets = [helper.make_opsetid(STANDARD, OPSET), helper.make_opsetid(CONTRIBUTED, CONTRIBUTED_OPSET)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="exobus")
        return bytes(model.SerializeToString())


def _value(name: str, dtype: type[np.generic], shape: Sequence[str | int]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), shape)

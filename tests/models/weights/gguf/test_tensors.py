"""Tensors of a GGUF file are those that the gguf package reads."""

from __future__ import annotations

import gguf
import numpy as np

from models.weights.gguf.header import read_header
from models.weights.gguf.tensors import read_tensor
from tests.support.models import default_model_path


def test_default_model_matches_the_gguf_package() -> None:
    path = default_model_path()
    tensors = read_header(path).tensors
    reader = gguf.GGUFReader(path)
    assert [tensor.name for tensor in reader.tensors] == list(tensors)
    for expected in reader.tensors:
        values = gguf.dequantize(expected.data, expected.tensor_type)
        np.testing.assert_array_equal(read_tensor(path, tensors[expected.name]), values)
    vocabulary = reader.fields["tokenizer.ggml.tokens"].contents()
    assert read_header(path).metadata["tokenizer.ggml.tokens"] == vocabulary

"""A GGUF header is read or rejected, whatever its bytes."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from gguf import GGUFValueType
from hypothesis import given, settings
from hypothesis import strategies as st

from models.errors import WeightsError
from models.weights.gguf.header import read_header
from models.weights.reader import open_weights
from tests.support.models import write_tiny_gguf


def test_every_truncation_is_rejected(tmp_path: Path) -> None:
    whole_file = write_tiny_gguf(tmp_path / "whole.gguf", n_layers=1, quantization="Q4_1").read_bytes()
    cut = tmp_path / "cut.gguf"
    for length in [*range(0, len(whole_file) - 32, 997), len(whole_file) - 32]:
        cut.write_bytes(whole_file[:length])
        with pytest.raises(WeightsError, match="delete it and fetch the model again"):
            open_weights(cut)


def test_skipped_lists_have_a_place_and_no_value(tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "tiny.gguf")
    whole, partly = read_header(path), read_header(path, skipped="tokenizer.")
    assert (partly.tensors, partly.places) == (whole.tensors, whole.places)
    lists = {key for key, value in whole.metadata.items() if isinstance(value, list)}
    assert len(lists) == 3
    assert partly.metadata == {key: None if key in lists else value for key, value in whole.metadata.items()}


def test_place_of_a_value_holds_its_type_and_bytes(tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "tiny.gguf")
    begin, end = read_header(path).places["llama.block_count"]
    assert path.read_bytes()[begin:end] == struct.pack("<II", GGUFValueType.UINT32, 4)


def test_truncation_inside_a_skipped_list_is_rejected(tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "tiny.gguf")
    begin, end = read_header(path).places["tokenizer.ggml.tokens"]
    content = path.read_bytes()
    for length in range(begin + 16, end, 61):
        path.write_bytes(content[:length])
        with pytest.raises(WeightsError, match="ends inside its header"):
            read_header(path, skipped="tokenizer.")


def test_wrong_magic_is_rejected(tmp_path: Path) -> None:
    path = tmp_path / "not.gguf"
    path.write_bytes(b"GGML" + bytes(100))
    with pytest.raises(WeightsError, match="does not begin like a GGUF file"):
        open_weights(path)


@settings(max_examples=300)
@given(st.data())
def test_changed_header_is_read_or_rejected(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    content = bytearray(tiny_gguf_bytes(tmp_path_factory))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, 1500))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "changed.gguf"
    path.write_bytes(content)
    assert "\n" not in error_of(lambda: open_weights(path))
    assert "\n" not in error_of(lambda: read_header(path, skipped="tokenizer."))


def error_of(read: Callable[[], object]) -> str:
    """Return the sentence of a WeightsError, or nothing if the file could be read."""
    try:
        read()
    except WeightsError as error:
        return str(error)
    return ""


def tiny_gguf_bytes(factory: pytest.TempPathFactory) -> bytes:
    path = factory.getbasetemp() / "tiny_for_changes.gguf"
    return path.read_bytes() if path.exists() else write_tiny_gguf(path, n_layers=1).read_bytes()

"""A shard's file holds the bytes of its layers, as an independent reader sees it, and is written once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFReader

from cluster.shard import Shard, whole
from engines.errors import EngineError
from engines.llamacpp.shard_file import FOLDER, KEPT, shard_file
from models.errors import WeightsError
from models.weights.gguf.header import read_header
from models.weights.gguf.parts import read_model_header
from tests.support.gguf_models import FAMILIES, HIDDEN, VOCAB, write_model
from tests.support.models import write_tiny_gguf

LAYERS = FAMILIES["llama"].n_layers


def cut(path: Path, start: int, end: int, root: Path, n_layers: int = LAYERS) -> Path:
    return shard_file(path, read_header(path), Shard("model", start, end, n_layers), root)


def tensors(path: Path) -> dict[str, Any]:
    return {tensor.name: tensor for tensor in GGUFReader(path).tensors}


def value(path: Path, key: str) -> Any:
    return GGUFReader(path).fields[key].contents()


def test_whole_model_is_the_file_itself(llama: Path, tmp_path: Path) -> None:
    assert shard_file(llama, read_header(llama), whole("model", LAYERS), tmp_path) == llama


@pytest.mark.parametrize(("start", "end"), [(0, 2), (1, 3), (3, 5)])
def test_layers_keep_their_bytes_and_get_new_numbers(start: int, end: int, llama: Path, tmp_path: Path) -> None:
    part, source = tensors(cut(llama, start, end, tmp_path)), tensors(llama)
    layers = {name: tensor for name, tensor in part.items() if name.startswith("blk.")}
    assert len(layers) == (end - start) * len(FAMILIES["llama"].layer)
    for name, tensor in layers.items():
        _, number, rest = name.split(".", 2)
        original = source[f"blk.{int(number) + start}.{rest}"]
        assert tensor.tensor_type == original.tensor_type
        np.testing.assert_array_equal(tensor.data, original.data)


def test_split_model_gives_the_same_file(tmp_path: Path) -> None:
    single = write_tiny_gguf(tmp_path / "tiny.gguf", n_layers=2)
    write_tiny_gguf(tmp_path / "split" / "tiny.gguf", n_layers=2, split_tensors=8)
    first = min((tmp_path / "split").iterdir())
    shard, root = Shard("model", 1, 2, 2), tmp_path / "cache"
    found = [shard_file(path, read_model_header(path, "tokenizer."), shard, root) for path in (single, first)]
    assert found[0] != found[1]
    assert found[0].read_bytes() == found[1].read_bytes()


def test_ends_that_a_part_lacks_are_stand_ins(llama: Path, tmp_path: Path) -> None:
    first, middle, last = (tensors(cut(llama, *edges, tmp_path)) for edges in ((0, 2), (2, 3), (3, 5)))
    source = tensors(llama)
    np.testing.assert_array_equal(first["token_embd.weight"].data, source["token_embd.weight"].data)
    np.testing.assert_array_equal(last["output.weight"].data, source["output.weight"].data)
    np.testing.assert_array_equal(last["output_norm.weight"].data, source["output_norm.weight"].data)
    np.testing.assert_array_equal(middle["output_norm.weight"].data, np.ones(HIDDEN))
    assert [list(part["token_embd.weight"].shape) for part in (middle, last)] == [[HIDDEN, 1], [HIDDEN, VOCAB]]
    assert not last["token_embd.weight"].data.any()


def test_tied_head_comes_from_the_embedding(tmp_path: Path) -> None:
    path = write_model(tmp_path / "model.gguf", "qwen2", "Q8_0")
    last = tensors(cut(path, 3, 5, tmp_path))
    assert "output.weight" not in last
    np.testing.assert_array_equal(last["token_embd.weight"].data, tensors(path)["token_embd.weight"].data)


def test_metadata_says_what_the_part_is(tmp_path: Path) -> None:
    heads = [2, 2, 1, 2, 1]
    path = write_model(tmp_path / "model.gguf", "llama", attention__head_count_kv=heads)
    part = cut(path, 1, 3, tmp_path)
    assert value(part, "llama.block_count") == 2
    assert value(part, "llama.vocab_size") == 1
    assert value(part, "llama.attention.head_count_kv") == [2, 1]
    assert value(part, "llama.rope.freq_base") == 10000.0


def test_zeros_take_no_room(tmp_path: Path, llama: Path) -> None:
    last = cut(llama, 3, 5, tmp_path)
    (embedding,) = (one for one in GGUFReader(last).tensors if one.name == "token_embd.weight")
    assert int(embedding.n_bytes) == VOCAB * HIDDEN * 5 // 8, "five bits each, since no row has 256 values"
    status = last.stat()
    assert status.st_blocks * 512 <= status.st_size - int(embedding.n_bytes) // 2


def test_file_is_written_once_for_each_state_of_its_source(tmp_path: Path) -> None:
    path = write_model(tmp_path / "model.gguf", "llama")
    part = cut(path, 0, 2, tmp_path)
    written = part.stat().st_mtime_ns
    assert cut(path, 0, 2, tmp_path) == part
    assert part.stat().st_mtime_ns == written
    write_model(path, "llama", "Q8_0")
    assert cut(path, 0, 2, tmp_path) != part


def test_oldest_files_of_a_model_go(tmp_path: Path) -> None:
    path = write_model(tmp_path / "model.gguf", "gemma3")
    other = cut(write_model(tmp_path / "other.gguf", "llama"), 0, 2, tmp_path)
    parts = [cut(path, 0, end, tmp_path, 9) for end in range(1, 9)] + [cut(path, 8, 9, tmp_path, 9)]
    left = set((tmp_path / FOLDER).iterdir())
    assert left == {other, *parts[-KEPT:]}


def test_model_that_cannot_be_cut_leaves_no_file(tmp_path: Path) -> None:
    path = write_model(tmp_path / "model.gguf", "smollm3")
    with pytest.raises(EngineError, match="every 4th layer"):
        cut(path, 0, 3, tmp_path, 10)
    assert not (tmp_path / FOLDER).exists()


def test_folder_that_cannot_be_written_is_an_error(tmp_path: Path, llama: Path) -> None:
    (tmp_path / FOLDER).write_text("a file")
    with pytest.raises(WeightsError, match=r"cannot be written \(File exists\); free some space"):
        cut(llama, 0, 2, tmp_path)

"""The tokenizer built from a GGUF file is the one it was written with."""

from __future__ import annotations

from pathlib import Path

import pytest
import tokenizers

from models.card import SamplingDefaults
from models.errors import TokenizerError, TokenizerUnavailable
from models.tokenizers.gguf_tokenizer import ensure_tokenizer
from models.tokenizers.tokenizer import Tokenizer
from models.weights.gguf.header import read_header
from tests.support.models import (
    CHAT_TEMPLATE,
    MERGES,
    SPECIAL_TOKENS,
    TinyVocabulary,
    default_model_path,
    tiny_tokenizer,
    write_tiny_gguf,
)


@pytest.fixture(scope="module")
def tiny() -> Tokenizer:
    return Tokenizer(tiny_tokenizer(), [2], None)


def test_tokens_of_the_default_model_keep_their_ids() -> None:
    path = default_model_path()
    tokens = read_header(path).metadata["tokenizer.ggml.tokens"]
    backend = tokenizers.Tokenizer.from_file(str(path.parent / "tokenizer.json"))
    assert [backend.id_to_token(index) for index in range(len(tokens))] == tokens


def test_tokenizer_of_a_gguf_is_rebuilt(tmp_path: Path, tiny: Tokenizer) -> None:
    path = write_tiny_gguf(tmp_path / "tiny.gguf")
    ensure_tokenizer(path, tmp_path)
    found = Tokenizer.load(tmp_path)
    text = f"{SPECIAL_TOKENS[1]}user\nthe thin man – é🙂{SPECIAL_TOKENS[2]}\n"
    assert found.encode(text) == tiny.encode(text)
    assert found.decode(found.encode("the thin man – é🙂")) == "the thin man – é🙂"
    assert found.eos_token_ids == {2}
    assert found.chat_template is not None
    assert list(tmp_path.glob("*.part")) == []


def test_sampling_of_a_gguf_is_recommended(tmp_path: Path) -> None:
    keys = {"general.sampling.temp": 0.7, "general.sampling.top_p": 0.95, "general.sampling.top_k": 20}
    ensure_tokenizer(write_tiny_gguf(tmp_path / "tiny.gguf", keys=keys), tmp_path)
    assert Tokenizer.load(tmp_path).sampling == SamplingDefaults(0.7, 0.95, 20)


def test_tokenizer_of_the_same_file_is_kept(tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "tiny.gguf")
    ensure_tokenizer(path, tmp_path)
    (tmp_path / "tokenizer.json").write_text("mine")
    ensure_tokenizer(path, tmp_path)
    assert (tmp_path / "tokenizer.json").read_text() == "mine"


@pytest.mark.parametrize("template", ["{{ messages[0].content }}!", CHAT_TEMPLATE.replace("user", "USER")])
def test_file_that_took_anothers_place_gets_its_own_tokenizer(tmp_path: Path, template: str) -> None:
    path, cache = write_tiny_gguf(tmp_path / "a.gguf"), tmp_path / "cache"
    cache.mkdir()
    ensure_tokenizer(path, cache)
    vocabulary = TinyVocabulary(template=template, merges=MERGES[:2])
    write_tiny_gguf(tmp_path / "b.gguf", seed=1, vocabulary=vocabulary).replace(path)
    ensure_tokenizer(path, cache)
    found = Tokenizer.load(cache)
    assert found.chat_template is not None
    assert found.chat_template.source == template
    assert len(found.encode(" the")) == 2


def test_tokenizer_of_an_unknown_file_is_made_anew(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("made by an earlier version")
    ensure_tokenizer(write_tiny_gguf(tmp_path / "tiny.gguf"), tmp_path)
    assert Tokenizer.load(tmp_path).eos_token_ids == {2}


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=r"absent\.gguf cannot be read"):
        ensure_tokenizer(tmp_path / "absent.gguf", tmp_path)


def test_damaged_gguf_leaves_no_tokenizer_files(tmp_path: Path) -> None:
    path = tmp_path / "cut.gguf"
    path.write_bytes(write_tiny_gguf(tmp_path / "tiny.gguf").read_bytes()[:2000])
    with pytest.raises(TokenizerError, match=r"cut\.gguf was cut short") as caught:
        ensure_tokenizer(path, tmp_path)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "tokenizer.json").exists()


def test_slow_child_is_stopped(tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "tiny.gguf")
    with pytest.raises(TokenizerUnavailable, match="was not built in 0 s"):
        ensure_tokenizer(path, tmp_path, timeout_s=0.01)
    assert not (tmp_path / "tokenizer.json").exists()

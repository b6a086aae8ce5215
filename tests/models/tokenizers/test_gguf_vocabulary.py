"""`models.tokenizers.gguf_vocabulary`: a GGUF's tokenizer gives the ids of its makers', or is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from gguf import TokenType
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import pre_tokenizers

from models.errors import TokenizerError
from models.tokenizers.gguf_vocabulary import build_vocabulary
from models.tokenizers.pre_tokenizers import SPLIT_RULES
from models.tokenizers.tokenizer import Tokenizer
from models.weights.gguf.header import read_header
from tests.support.models import MERGES, TINY_VOCAB, TinyVocabulary, default_model_path, write_tiny_gguf

# Texts and ids of llama.cpp's `models/ggml-vocab-smollm.gguf.out`.
SMOLLM: list[tuple[str, list[int]]] = json.loads((Path(__file__).parent / "smollm_vectors.json").read_text())

DEEPSEEK = {
    "<\uff5cbegin\u2581of\u2581sentence\uff5c>": TokenType.CONTROL,
    "<\uff5cUser\uff5c>": TokenType.CONTROL,
    "<\uff5cAssistant\uff5c>": TokenType.CONTROL,
    "<think>": TokenType.USER_DEFINED,
    "\u00fc": TokenType.USER_DEFINED,
}

SCORED = {"\u2581": -9.0, "a": -9.0, "b": -9.0, "c": -9.0, "ab": -2.0, "bc": -1.0, "\u2581a": -3.0, "\u2581ab": -4.0}


@pytest.fixture(scope="module")
def default() -> tokenizers.Tokenizer:
    path = default_model_path()
    return build_vocabulary(read_header(path).metadata, path)


def tiny(folder: Path, **changes: Any) -> tokenizers.Tokenizer:
    """Build the tokenizer of a tiny GGUF. `changes` are fields of `TinyVocabulary`, and `rows` of the head."""
    rows = changes.pop("rows", TINY_VOCAB + len(changes.get("added", ())))
    path = write_tiny_gguf(folder / "tiny.gguf", n_layers=1, vocab=rows, vocabulary=TinyVocabulary(**changes))
    return build_vocabulary(read_header(path).metadata, path)


@pytest.mark.parametrize(("text", "ids"), SMOLLM, ids=lambda given: ascii(given)[:24])
def test_published_ids_of_the_default_model(default: tokenizers.Tokenizer, text: str, ids: list[int]) -> None:
    assert default.encode(text, add_special_tokens=False).ids == ids


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_default_model_splits_like_its_makers(default: tokenizers.Tokenizer, text: str) -> None:
    # What SmolLM2's own tokenizer.json has.
    digits, byte_level = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)
    expected = pre_tokenizers.Sequence([digits, byte_level]).pre_tokenize_str(text)
    assert default.pre_tokenizer.pre_tokenize_str(text) == expected


def test_control_tokens_of_any_alphabet_are_one_id(tmp_path: Path) -> None:
    backend = tiny(tmp_path, pre="llama-bpe", added=DEEPSEEK)
    tokens = list(TinyVocabulary(added=DEEPSEEK).tokens(TINY_VOCAB))
    for text in DEEPSEEK:
        assert backend.encode(text, add_special_tokens=False).ids == [tokens.index(text)]
    ids = backend.encode("<\uff5cUser\uff5c>Hi<\uff5cAssistant\uff5c>", add_special_tokens=False).ids
    assert (ids[0], ids[-1], len(ids)) == (TINY_VOCAB + 1, TINY_VOCAB + 2, 4)


def test_user_defined_letter_is_decoded_as_itself(tmp_path: Path) -> None:
    tokenizer = Tokenizer(tiny(tmp_path, pre="deepseek-llm", added=DEEPSEEK), [], None)
    ids = tokenizer.encode("F\u00fchrer \u00e9 \u00fc\u00fc")
    assert len(ids) == 12  # an é is two bytes, an ü one token
    assert tokenizer.decode(ids) == "F\u00fchrer \u00e9 \u00fc\u00fc"
    stream = tokenizer.stream()
    assert "".join([*map(stream.push, ids), stream.flush()]) == "F\u00fchrer \u00e9 \u00fc\u00fc"


def test_end_of_turn_with_a_wrong_type_is_one_id(tmp_path: Path) -> None:
    backend = tiny(tmp_path, added={"<|end|>": TokenType.NORMAL})
    assert backend.encode("the<|end|>", add_special_tokens=False).ids[-1] == TINY_VOCAB


def test_unused_tokens_at_the_end_have_no_id(tmp_path: Path) -> None:
    backend = tiny(tmp_path, filler=TokenType.UNUSED, rows=TINY_VOCAB + 9)
    assert Tokenizer(backend, [], None).vocabulary == TINY_VOCAB


@pytest.mark.parametrize("kind", [TokenType.USER_DEFINED, TokenType.NORMAL, TokenType.UNUSED])
def test_padding_of_older_converters_has_no_id(tmp_path: Path, kind: TokenType) -> None:
    padding = {f"[PAD{TINY_VOCAB + at}]": kind for at in range(9)}
    tokenizer = Tokenizer(tiny(tmp_path, added=padding), [], None)
    assert tokenizer.vocabulary == TINY_VOCAB
    assert len(tokenizer.encode(f"[PAD{TINY_VOCAB}]")) > 1


@pytest.mark.parametrize("name", ["superbpe", "no-such-thing", "default"])
def test_unknown_split_is_refused_by_name(tmp_path: Path, name: str) -> None:
    assert name not in SPLIT_RULES
    with pytest.raises(TokenizerError, match=rf"tiny\.gguf splits texts by the rule '{name}'.*; use the safetensors"):
        tiny(tmp_path, pre=name)


def test_missing_split_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=r"does not say how its texts are split.*; fetch a newer conversion"):
        tiny(tmp_path, pre=None)


def test_unknown_kind_of_vocabulary_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        TokenizerError, match="of the kind 'rwkv', and exobus knows gpt2, llama, gemma4, whatever the engine; use"
    ):
        tiny(tmp_path, model="rwkv")


@pytest.mark.parametrize("merge", [("the", "man"), ("x", "")])
def test_merge_without_its_token_is_refused(tmp_path: Path, merge: tuple[str, str]) -> None:
    with pytest.raises(TokenizerError, match=r"tiny\.gguf has (merges that do not fit|two tokens|a merge)"):
        tiny(tmp_path, merges=(*MERGES, merge))


def test_token_that_comes_twice_is_refused(tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "tiny.gguf", n_layers=1)
    metadata = read_header(path).metadata
    metadata["tokenizer.ggml.tokens"][-1] = metadata["tokenizer.ggml.tokens"][-2]
    with pytest.raises(TokenizerError, match="has two tokens"):
        build_vocabulary(metadata, path)


def sentencepiece(scored: dict[str, float] = SCORED, **changes: Any) -> tokenizers.Tokenizer:
    """Build a vocabulary like Llama 2's, with merges that follow from the scores. `changes` are more metadata."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *scored]
    types = [TokenType.UNKNOWN, TokenType.CONTROL, TokenType.CONTROL] + [TokenType.BYTE] * 256
    metadata = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types + [TokenType.NORMAL] * len(scored),
        "tokenizer.ggml.scores": [0.0] * len(types) + list(scored.values()),
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
    }
    return build_vocabulary(
        metadata | {f"tokenizer.ggml.{key}": value for key, value in changes.items()}, Path("s.gguf")
    )


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("ab", ["\u2581ab"]),
        ("abc", ["\u2581a", "bc"]),
        (" ab", ["\u2581", "\u2581ab"]),
        ("</s>ab", ["</s>", "\u2581ab"]),
        ("<s></s>", ["<s>", "</s>"]),
        ("a\u00e9", ["\u2581a", "<0xC3>", "<0xA9>"]),
        ("", []),
    ],
)
def test_sentencepiece_merges_the_best_score_first(text: str, pieces: list[str]) -> None:
    assert sentencepiece().encode(text, add_special_tokens=False).tokens == pieces


def test_sentencepiece_without_a_space_in_front() -> None:
    backend = sentencepiece(add_space_prefix=False)
    assert backend.encode("ab</s>ab", add_special_tokens=False).tokens == ["ab", "</s>", "ab"]
    assert backend.decode(backend.encode(" ab").ids) == " ab"


def test_sentencepiece_with_stated_merges_is_like_gemma_4() -> None:
    backend = sentencepiece(model="gemma4", merges=["b c", "\u2581 a"])
    assert backend.encode("abc abc\n", add_special_tokens=False).tokens == ["a", "bc", "\u2581a", "bc", "<0x0A>"]


def test_no_merge_makes_a_control_token() -> None:
    backend = sentencepiece(dict.fromkeys(["<", "/", "s", ">", "</", "s>"], -1.0), add_space_prefix=False)
    assert backend.encode("</s>", add_special_tokens=False).tokens == ["</s>"]
    backend.encode_special_tokens = True
    assert backend.encode("</s>", add_special_tokens=False).tokens == ["</", "s>"]


@pytest.mark.parametrize("text", ["ab c", "  ab", "caf\u00e9 \U0001f642"])
def test_sentencepiece_decodes_what_it_encoded(text: str) -> None:
    backend = sentencepiece()
    assert backend.decode(backend.encode(text).ids) == text


@pytest.mark.parametrize(
    "changes",
    [{"tokens": None}, {"model": None}, {"tokens": [1, 2]}, {"merges": [3]}, {"scores": "x"}, {"bos_token_id": "a"}],
    ids=str,
)
def test_metadata_of_another_kind_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(TokenizerError, match=r"s\.gguf holds no usable tokenizer \(.*; fetch another conversion of it"):
        sentencepiece(**changes)

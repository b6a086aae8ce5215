"""Text survives the way to ids and back, streams never break a character, and a GGUF's tokenizer is its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from models.errors import TokenizerError
from models.gguf_header import read_header
from models.gguf_tokenizer import ensure_tokenizer
from models.tokenizer import Tokenizer
from tests.support.models import (
    SPECIAL_TOKENS,
    TINY_VOCAB,
    default_model_path,
    tiny_tokenizer,
    write_tiny_gguf,
    write_tiny_llama,
)

# The default model's vocabulary has no token for these control bytes, nor for the lead bytes of planes 4 to 15.
SPELLABLE = st.characters(
    max_codepoint=0x3FFFF, exclude_categories=["Cs"], exclude_characters="\x04\x06\x13\x14\x16\x1d"
)
PARIS = [504, 3575, 282, 4649, 314, 7042, 30, 2]


@pytest.fixture(scope="module")
def default() -> Tokenizer:
    return Tokenizer.load(default_model_path().parent)


@pytest.fixture(scope="module")
def tiny() -> Tokenizer:
    return Tokenizer(tiny_tokenizer(), [2], None)


@pytest.fixture(scope="module")
def sentencepiece() -> Tokenizer:
    """A tokenizer in the manner of Llama 2: a space marker, byte fallback, and the first space of a text dropped."""
    pieces = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁a", "▁b", "c", "▁", "▁é"]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, [], byte_fallback=True))
    backend.decoder = tokenizers.decoders.Sequence(
        [
            tokenizers.decoders.Replace("▁", " "),
            tokenizers.decoders.ByteFallback(),
            tokenizers.decoders.Fuse(),
            tokenizers.decoders.Strip(" ", 1, 0),
        ]
    )
    return Tokenizer(backend, [0], None)


def streamed(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    stream = tokenizer.stream()
    return [*(stream.push(token) for token in ids), stream.flush()]


PLAIN = st.text().filter(lambda text: "<|" not in text)  # a special token that is written out is one, and not shown


class TestRoundTrips:
    @given(text=st.text(SPELLABLE).filter(lambda text: "<|" not in text))
    def test_the_default_model_gives_back_any_text_that_it_can_spell(self, default: Tokenizer, text: str) -> None:
        assert default.decode(default.encode(text)) == text

    @given(text=PLAIN)
    def test_the_tiny_model_gives_any_text_back(self, tiny: Tokenizer, text: str) -> None:
        assert tiny.decode(tiny.encode(text)) == text

    def test_known_ids_of_the_default_model(self, default: Tokenizer) -> None:
        assert default.decode(PARIS) == "The capital of France is Paris."
        assert default.encode("The capital of France is Paris.<|im_end|>") == PARIS
        assert default.eos_token_ids == {2}
        assert default.vocab_size == 49152


class TestStream:
    @settings(max_examples=300)
    @given(ids=st.lists(st.integers(0, 49151), max_size=60))
    def test_the_pieces_join_to_the_text_of_random_ids(self, default: Tokenizer, ids: list[int]) -> None:
        assert "".join(streamed(default, ids)) == default.decode(ids)

    @settings(max_examples=300)
    @given(ids=st.lists(st.integers(0, TINY_VOCAB - 1), max_size=60))
    def test_the_pieces_join_to_the_text_of_random_bytes(self, tiny: Tokenizer, ids: list[int]) -> None:
        assert "".join(streamed(tiny, ids)) == tiny.decode(ids)

    @given(text=PLAIN)
    def test_no_piece_of_a_good_text_holds_half_a_character(self, tiny: Tokenizer, text: str) -> None:
        pieces = streamed(tiny, tiny.encode(text))
        assert "".join(pieces) == text
        assert "".join(pieces).count("\ufffd") == text.count("\ufffd")

    def test_a_character_of_four_bytes_comes_whole_with_its_last(self, tiny: Tokenizer) -> None:
        ids = tiny.encode("a🙂b")
        assert len(ids) == 6
        assert streamed(tiny, ids) == ["a", "", "", "", "🙂", "b", ""]

    def test_bytes_that_never_become_a_character_come_at_the_end(self, tiny: Tokenizer) -> None:
        ids = tiny.encode("x🙂")[:-1]
        assert streamed(tiny, ids) == ["x", "", "", "", "\ufffd"]

    @given(words=st.lists(st.sampled_from(["▁a", "▁b", "c", "▁", "▁é", "é", "🙂"]), max_size=20))
    def test_spaces_are_kept_where_a_decoder_drops_the_first(self, sentencepiece: Tokenizer, words: list[str]) -> None:
        ids = [token for word in words for token in sentencepiece.encode(word)]
        assert "".join(streamed(sentencepiece, ids)) == sentencepiece.decode(ids)

    def test_a_decoder_is_as_new_after_a_flush(self, default: Tokenizer) -> None:
        stream = default.stream()
        texts = ["".join([*map(stream.push, PARIS), stream.flush()]) for _ in range(2)]
        assert texts == ["The capital of France is Paris."] * 2

    def test_a_long_stream_takes_the_same_work_at_its_end_as_at_its_start(self, default: Tokenizer) -> None:
        stream = default.stream()
        for token in default.encode("word " * 2000):
            stream.push(token)
        assert len(stream._window) < 4


class TestFiles:
    def test_the_ends_are_the_union_of_what_the_files_say(self, tmp_path: Path) -> None:
        folder = write_tiny_llama(tmp_path)
        (folder / "generation_config.json").write_text('{"eos_token_id": [0, 9]}')
        assert Tokenizer.load(folder).eos_token_ids == {0, 2, 9}

    def test_a_template_file_wins_over_the_settings(self, tmp_path: Path) -> None:
        folder = write_tiny_llama(tmp_path)
        (folder / "chat_template.jinja").write_text("{{ bos_token }}!{{ eos_token }}")
        template = Tokenizer.load(folder).chat_template
        assert template is not None
        assert template.render([]) == "<|im_start|>!<|im_end|>"

    def test_the_default_of_several_templates_is_taken(self, tmp_path: Path) -> None:
        folder = write_tiny_llama(tmp_path)
        named = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "plain"}]
        settings = {"eos_token": {"content": "<|im_end|>"}, "chat_template": named}
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
        tokenizer = Tokenizer.load(folder)
        assert tokenizer.chat_template is not None
        assert tokenizer.chat_template.render([]) == "plain"

    def test_a_model_without_a_template_has_none(self, tmp_path: Path) -> None:
        folder = write_tiny_llama(tmp_path)
        (folder / "tokenizer_config.json").unlink()
        assert Tokenizer.load(folder).chat_template is None

    @pytest.mark.parametrize(
        ("file", "content", "says"),
        [
            ("tokenizer.json", "{", "is no tokenizer"),
            ("tokenizer.json", '{"model": {"type": "BPE"}}', "is no tokenizer"),
            ("tokenizer_config.json", "{", "not readable JSON"),
            ("tokenizer_config.json", "[]", "does not hold a JSON object"),
        ],
    )
    def test_a_damaged_file_is_refused_with_one_sentence(
        self, tmp_path: Path, file: str, content: str, says: str
    ) -> None:
        folder = write_tiny_llama(tmp_path)
        (folder / file).write_text(content)
        with pytest.raises(TokenizerError, match=says) as caught:
            Tokenizer.load(folder)
        assert str(folder / file) in str(caught.value)

    def test_a_folder_without_a_tokenizer_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(TokenizerError, match=r"has no tokenizer\.json"):
            Tokenizer.load(tmp_path)

    def test_importing_the_tokenizer_pulls_in_no_heavy_package(self) -> None:
        script = "import sys, models.tokenizer; print([m for m in sys.argv[1:] if m in sys.modules])"
        command = [sys.executable, "-c", script, "transformers", "torch", "numpy", "mlx", "gguf", "zmq"]
        child = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
        assert child.stdout.strip() == "[]"


class TestGguf:
    def test_every_token_of_the_default_model_has_the_id_that_the_file_gives_it(self) -> None:
        path = default_model_path()
        tokens = read_header(path).metadata["tokenizer.ggml.tokens"]
        backend = tokenizers.Tokenizer.from_file(str(path.parent / "tokenizer.json"))
        assert [backend.id_to_token(index) for index in range(len(tokens))] == tokens

    def test_a_gguf_gives_the_tokenizer_that_it_was_written_with(self, tmp_path: Path, tiny: Tokenizer) -> None:
        path = write_tiny_gguf(tmp_path / "tiny.gguf")
        ensure_tokenizer(path, tmp_path)
        found = Tokenizer.load(tmp_path)
        text = f"{SPECIAL_TOKENS[1]}user\nthe thin man – é🙂{SPECIAL_TOKENS[2]}\n"
        assert found.encode(text) == tiny.encode(text)
        assert found.decode(found.encode("the thin man – é🙂")) == "the thin man – é🙂"
        assert found.eos_token_ids == {2}
        assert found.chat_template is not None
        assert list(tmp_path.glob("*.part")) == []

    def test_a_tokenizer_that_is_there_is_left_alone(self, tmp_path: Path) -> None:
        (tmp_path / "tokenizer.json").write_text("mine")
        ensure_tokenizer(tmp_path / "absent.gguf", tmp_path)
        assert (tmp_path / "tokenizer.json").read_text() == "mine"

    def test_a_damaged_gguf_gives_one_sentence_and_no_files(self, tmp_path: Path) -> None:
        path = tmp_path / "cut.gguf"
        path.write_bytes(write_tiny_gguf(tmp_path / "tiny.gguf").read_bytes()[:2000])
        with pytest.raises(TokenizerError, match=r"cut\.gguf was cut short") as caught:
            ensure_tokenizer(path, tmp_path)
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "tokenizer.json").exists()

    def test_a_child_that_takes_too_long_is_ended(self, tmp_path: Path) -> None:
        path = write_tiny_gguf(tmp_path / "tiny.gguf")
        with pytest.raises(TokenizerError, match="was not built in 0 s"):
            ensure_tokenizer(path, tmp_path, deadline_s=0.01)
        assert not (tmp_path / "tokenizer.json").exists()

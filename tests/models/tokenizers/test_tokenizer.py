"""Text survives encoding and decoding, and streams never break a character."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from models.card import SamplingDefaults
from models.errors import TemplateError, TokenizerError
from models.tokenizers.tokenizer import END_OF_TURN, Tokenizer
from tests.support.models import TINY_VOCAB, default_model_path, tiny_tokenizer, write_tiny_llama

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
    """Make a tokenizer like Llama 2's: a space marker, byte fallback, and the first space of a text stripped."""
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


PLAIN = st.text().filter(lambda text: "<|" not in text)  # a special token written out becomes one, and is not decoded


class TestRoundTrips:
    @given(text=st.text(SPELLABLE).filter(lambda text: "<|" not in text))
    def test_default_model_round_trips_any_known_text(self, default: Tokenizer, text: str) -> None:
        assert default.decode(default.encode(text)) == text

    @given(text=PLAIN)
    def test_tiny_model_round_trips_any_text(self, tiny: Tokenizer, text: str) -> None:
        assert tiny.decode(tiny.encode(text)) == text

    def test_default_model_has_known_ids(self, default: Tokenizer) -> None:
        assert default.decode(PARIS) == "The capital of France is Paris."
        assert default.encode("The capital of France is Paris.<|im_end|>") == PARIS
        assert default.eos_token_ids == {2}


class TestStream:
    @settings(max_examples=300)
    @given(ids=st.lists(st.integers(0, 49151), max_size=60))
    def test_pieces_of_random_ids_join_to_their_text(self, default: Tokenizer, ids: list[int]) -> None:
        assert "".join(streamed(default, ids)) == default.decode(ids)

    @settings(max_examples=300)
    @given(ids=st.lists(st.integers(0, TINY_VOCAB - 1), max_size=60))
    def test_pieces_of_random_bytes_join_to_their_text(self, tiny: Tokenizer, ids: list[int]) -> None:
        assert "".join(streamed(tiny, ids)) == tiny.decode(ids)

    @given(text=PLAIN)
    def test_pieces_hold_only_whole_characters(self, tiny: Tokenizer, text: str) -> None:
        pieces = streamed(tiny, tiny.encode(text))
        assert "".join(pieces) == text
        assert "".join(pieces).count("\ufffd") == text.count("\ufffd")

    def test_multi_byte_character_comes_with_its_last_byte(self, tiny: Tokenizer) -> None:
        ids = tiny.encode("a🙂b")
        assert len(ids) == 6
        assert streamed(tiny, ids) == ["a", "", "", "", "🙂", "b", ""]

    def test_flush_returns_incomplete_bytes(self, tiny: Tokenizer) -> None:
        ids = tiny.encode("x🙂")[:-1]
        assert streamed(tiny, ids) == ["x", "", "", "", "\ufffd"]

    @given(words=st.lists(st.sampled_from(["▁a", "▁b", "c", "▁", "▁é", "é", "🙂"]), max_size=20))
    def test_stream_keeps_spaces_that_a_decoder_strips_first(self, sentencepiece: Tokenizer, words: list[str]) -> None:
        ids = [token for word in words for token in sentencepiece.encode(word)]
        assert "".join(streamed(sentencepiece, ids)) == sentencepiece.decode(ids)

    def test_decoder_can_be_reused_after_a_flush(self, default: Tokenizer) -> None:
        stream = default.stream()
        texts = ["".join([*map(stream.push, PARIS), stream.flush()]) for _ in range(2)]
        assert texts == ["The capital of France is Paris."] * 2

    def test_stream_window_stays_short(self, default: Tokenizer) -> None:
        stream = default.stream()
        for token in default.encode("word " * 2000):
            stream.push(token)
        assert len(stream._window) < 4

    @given(ids=st.lists(st.sampled_from([*range(TINY_VOCAB), TINY_VOCAB, 99999]), max_size=40))
    def test_ids_without_a_text_change_no_piece(self, tiny: Tokenizer, ids: list[int]) -> None:
        with_text = [token for token in ids if 3 <= token < TINY_VOCAB]
        assert "".join(streamed(tiny, ids)) == "".join(streamed(tiny, with_text)) == tiny.decode(ids)

    @pytest.mark.parametrize("token", [1, 99999, "é"], ids=["special", "without a text", "half a character"])
    def test_token_that_is_repeated_fills_no_window(self, tiny: Tokenizer, token: int | str) -> None:
        stream, token = tiny.stream(), token if isinstance(token, int) else tiny.encode(token)[0]
        held = [(stream.push(token), len(stream._window))[1] for _ in range(300)]
        assert max(held) < 100
        assert stream.push(tiny.encode("x")[0]).endswith("x")


class TestEnds:
    @pytest.mark.parametrize("name", END_OF_TURN)
    def test_known_end_of_turn_is_an_end(self, tmp_path: Path, name: str) -> None:
        folder = write_tiny_llama(tmp_path)
        extended(name).save(str(folder / "tokenizer.json"))
        found = Tokenizer.load(folder)
        assert found.eos_token_ids == {2, *found.encode(name)}

    @pytest.mark.parametrize("text", ["<turn|>", "\n<turn|>\n<|im_start|>", " <turn|> the man"])
    def test_token_behind_an_answer_ends_a_turn(self, text: str) -> None:
        found = Tokenizer(extended("<turn|>"), [2], None)
        found.end_turns_at(text)
        assert found.eos_token_ids == {2, TINY_VOCAB}

    @pytest.mark.parametrize("text", ["", "\n", "### <turn|>"])
    def test_text_behind_an_answer_ends_nothing(self, text: str) -> None:
        found = Tokenizer(extended("<turn|>"), [2], None)
        found.end_turns_at(text)
        assert found.eos_token_ids == {2}


def extended(token: str) -> tokenizers.Tokenizer:
    """Make the tiny tokenizer with one more special token."""
    backend = tiny_tokenizer()
    backend.add_special_tokens([tokenizers.AddedToken(token, special=True, normalized=False)])
    return backend


def template_of_settings(folder: Path, settings: dict[str, Any]) -> str | None:
    """Return the template that is found with this `tokenizer_config.json`."""
    write_tiny_llama(folder)
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    template = Tokenizer.load(folder).chat_template
    return None if template is None else template.source


def test_vocabulary_counts_ids_that_have_a_text(tiny: Tokenizer) -> None:
    assert tiny.vocabulary == TINY_VOCAB
    assert Tokenizer(extended("<turn|>"), [], None).vocabulary == TINY_VOCAB + 1


class TestFiles:
    def test_end_tokens_are_the_union_of_all_files(self, tmp_path: Path) -> None:
        folder = write_tiny_llama(tmp_path)
        (folder / "generation_config.json").write_text('{"eos_token_id": [0, 9]}')
        assert Tokenizer.load(folder).eos_token_ids == {0, 2, 9}

    def test_recommended_sampling_is_read(self, tmp_path: Path) -> None:
        folder = write_tiny_llama(tmp_path)
        assert Tokenizer.load(folder).sampling is None
        (folder / "generation_config.json").write_text('{"temperature": 0.5}')
        assert Tokenizer.load(folder).sampling == SamplingDefaults(0.5)

    def test_template_file_wins_over_the_settings(self, tmp_path: Path) -> None:
        folder = write_tiny_llama(tmp_path)
        (folder / "chat_template.jinja").write_text("{{ bos_token }}!{{ eos_token }}")
        template = Tokenizer.load(folder).chat_template
        assert template is not None
        assert template.render([]) == "<|im_start|>!<|im_end|>"

    @pytest.mark.parametrize(
        "named",
        [
            [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "plain"}],
            [{"name": "rag", "template": "plain"}],
            {"default": "plain", "tool_use": "tools"},
        ],
    )
    def test_template_for_chats_is_used_of_several(self, tmp_path: Path, named: Any) -> None:
        assert template_of_settings(tmp_path, {"chat_template": named}) == "plain"

    def test_named_templates_without_a_default_are_refused(self, tmp_path: Path) -> None:
        named = [{"name": name, "template": name} for name in ("tool_use", "rag")]
        with pytest.raises(TemplateError, match="chat templates for rag, tool_use, but none that is the default"):
            template_of_settings(tmp_path, {"chat_template": named})

    def test_template_of_a_processor_is_used(self, tmp_path: Path) -> None:
        (tmp_path / "chat_template.json").write_text('{"chat_template": "processor"}')
        assert template_of_settings(tmp_path, {}) == "processor"
        assert template_of_settings(tmp_path, {"chat_template": "own"}) == "own"

    def test_length_of_a_training_cuts_no_text(self, tmp_path: Path) -> None:
        folder = write_tiny_llama(tmp_path)
        backend = tiny_tokenizer()
        backend.enable_truncation(4)
        backend.enable_padding(length=64)
        backend.save(str(folder / "tokenizer.json"))
        assert Tokenizer.load(folder).encode("a" * 9) == tiny_tokenizer().encode("a" * 9).ids

    def test_model_without_a_template_has_none(self, tmp_path: Path) -> None:
        folder = write_tiny_llama(tmp_path)
        (folder / "tokenizer_config.json").unlink()
        assert Tokenizer.load(folder).chat_template is None

    @pytest.mark.parametrize(
        ("file", "content", "message"),
        [
            ("tokenizer.json", "{", "is not a tokenizer"),
            ("tokenizer.json", '{"model": {"type": "BPE"}}', "is not a tokenizer"),
            ("tokenizer_config.json", "{", "does not hold a JSON object"),
            ("tokenizer_config.json", "[]", "does not hold a JSON object"),
            (
                "generation_config.json",
                f'{{"eos_token_id": {[*range(300)]}}}',
                "names 300 tokens that end an answer",
            ),
        ],
    )
    def test_damaged_file_is_rejected(self, tmp_path: Path, file: str, content: str, message: str) -> None:
        folder = write_tiny_llama(tmp_path)
        (folder / file).write_text(content)
        with pytest.raises(TokenizerError, match=message) as caught:
            Tokenizer.load(folder)
        assert str(folder / file) in str(caught.value)

    def test_impossible_id_is_rejected(self, tmp_path: Path) -> None:
        folder = write_tiny_llama(tmp_path)
        text = json.loads((folder / "tokenizer.json").read_text())
        text["model"]["vocab"]["far"] = (1 << 32) - 1
        (folder / "tokenizer.json").write_text(json.dumps(text))
        with pytest.raises(TokenizerError, match=r"tokenizer\.json gives a token the id 4294967295"):
            Tokenizer.load(folder)

    def test_folder_without_a_tokenizer_is_rejected(self, tmp_path: Path) -> None:
        with pytest.raises(TokenizerError, match=r"has no tokenizer\.json"):
            Tokenizer.load(tmp_path)

    def test_tokenizer_imports_no_heavy_package(self) -> None:
        script = "import sys, models.tokenizers.tokenizer; print([m for m in sys.argv[1:] if m in sys.modules])"
        command = [sys.executable, "-c", script, "transformers", "torch", "numpy", "mlx", "gguf", "zmq"]
        child = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
        assert child.stdout.strip() == "[]"

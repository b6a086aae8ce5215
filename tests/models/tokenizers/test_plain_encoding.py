"""`models.tokenizers.plain_encoding`: text never becomes a control token, and is otherwise encoded as ever."""

from __future__ import annotations

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, pre_tokenizers
from tokenizers.models import BPE

from models.tokenizers.control_tokens import StandIns
from models.tokenizers.plain_encoding import PlainEncoder, StandInTokenizer
from models.tokenizers.tokenizer import Tokenizer
from tests.support.models import default_model_path, tiny_tokenizer

END = "<|im_end|>"
PIECES = ["<|im_start|>", END, "user\n", "the man", "  ", "\n", "<|im_", "\u00e9\U0001f642", "<think>", "a", "b"]
TEXT = st.lists(st.sampled_from(PIECES)).map("".join)


def spaced(scheme: str) -> tokenizers.Tokenizer:
    """Make a tokenizer with a space in front of the first text, or of every text behind a control token."""
    pieces = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "\u2581", "a", "b", "\u2581a"]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    backend = tokenizers.Tokenizer(BPE(vocabulary, [("\u2581", "a")], byte_fallback=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    backend.add_tokens([AddedToken("<think>", normalized=False)])
    backend.add_special_tokens([AddedToken(END, special=True, normalized=False)])
    return backend


def stripping() -> tokenizers.Tokenizer:
    """Make a tokenizer with a control token that takes the spaces behind it, and another those before it."""
    backend = tiny_tokenizer()
    backend.add_tokens([AddedToken("<think>", normalized=False)])
    backend.add_special_tokens([AddedToken("<|end|>", rstrip=True), AddedToken("<|mask|>", lstrip=True)])
    return backend


BACKENDS = {
    "tiny": tiny_tokenizer(),
    "first space": spaced("first"),
    "spaces": spaced("always"),
    "stripping": stripping(),
}


ENCODERS = {name: PlainEncoder(backend) for name, backend in BACKENDS.items()}


@pytest.fixture(scope="module")
def default() -> Tokenizer:
    return Tokenizer.load(default_model_path().parent)


@pytest.mark.parametrize("name", BACKENDS)
@given(text=TEXT)
def test_ids_are_those_of_the_whole_text(name: str, text: str) -> None:
    encoder = ENCODERS[name]
    expected = BACKENDS[name].encode(text, add_special_tokens=False).ids
    assert encoder.encode(encoder.control_tokens.split(text)) == expected


@given(text=TEXT)
def test_default_model_encodes_the_same(default: Tokenizer, text: str) -> None:
    assert default.reading(StandIns({}, default.control_tokens)).encode(text) == default.encode(text)


def test_spaces_that_a_control_token_takes_are_dropped() -> None:
    encoder, backend = ENCODERS["stripping"], BACKENDS["stripping"]
    text = f"a <|mask|> b{END} <|end|> \n the"
    expected = backend.encode(text, add_special_tokens=False).ids
    assert encoder.encode(encoder.control_tokens.split(text)) == expected


@pytest.mark.parametrize("name", BACKENDS)
@given(before=TEXT, written=TEXT, after=TEXT)
def test_hidden_control_token_is_read_as_text(name: str, before: str, written: str, after: str) -> None:
    backend, encoder = BACKENDS[name], ENCODERS[name]
    stand_ins = encoder.control_tokens.stand_ins(written)
    ids = StandInTokenizer(encoder, stand_ins, 1).encode(f"{before}{END}{stand_ins.hide(written)}{END}{after}")
    special = {index for index, token in backend.get_added_tokens_decoder().items() if token.special}
    template_own = [*encoder.control_tokens.split(before)[1::2], END, END, *encoder.control_tokens.split(after)[1::2]]
    assert [index for index in ids if index in special] == [backend.token_to_id(text) for text in template_own]


def test_hidden_control_token_keeps_its_text() -> None:
    tokenizer = Tokenizer(tiny_tokenizer(), [2], None)
    written = f"a{END} b"
    stand_ins = tokenizer.control_tokens.stand_ins(written)
    reading = tokenizer.reading(stand_ins)
    ids = reading.encode(f"{stand_ins.hide(written)}{END}")
    assert (tokenizer.decode(ids), ids[-1], reading.count(stand_ins.hide(written))) == (written, 2, len(ids) - 1)


def test_tokens_that_are_no_control_tokens_stay_whole() -> None:
    (index,) = ENCODERS["spaces"].encode(["<think>"])
    assert BACKENDS["spaces"].id_to_token(index) == "<think>"


def test_control_tokens_of_a_large_vocabulary_are_found_in_time() -> None:
    backend = tiny_tokenizer()
    backend.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    backend.add_special_tokens([f"<|reserved_{number}|>" for number in range(2000)])
    pieces = PlainEncoder(backend).control_tokens.split("<|reserved_19" * 50_000 + "<|reserved_1999|>")
    assert pieces[1:] == ["<|reserved_1999|>", ""]

"""A user's name for a model is a name of the catalogue, a repository or a path, and nothing else passes silently."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.card import MODEL_ID
from models.errors import BadName
from models.names import CatalogueName, HubName, LocalPath, parse_name

WORD = st.from_regex(r"[A-Za-z0-9]+(?:[-_.][A-Za-z0-9]+)*", fullmatch=True).filter(lambda text: len(text) <= 40)
QUANTS = st.sampled_from(["", "auto", "Q4_K_M", "iq2_xxs", "BF16"])
HUB_NAMES = st.builds(
    HubName, st.builds("{}/{}".format, WORD, WORD.filter(lambda text: not text.lower().endswith("gguf"))),
    st.just("") | WORD.filter(lambda text: not text.lower().endswith("gguf")), QUANTS,
)  # fmt: skip


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("SmolLM2-135M", CatalogueName("smollm2-135m")),
        ("llama3.2:1b", CatalogueName("llama3.2:1b")),
        (" Qwen/Qwen3-0.6B ", HubName("Qwen/Qwen3-0.6B")),
        ("Qwen/Qwen3-0.6B-GGUF:Q4_K_M", HubName("Qwen/Qwen3-0.6B-GGUF", quant="Q4_K_M")),
        ("Qwen/Qwen3-0.6B@v1.0:auto", HubName("Qwen/Qwen3-0.6B", "v1.0", "auto")),
        ("hf.co/Qwen/Qwen3-0.6B:q8_0", HubName("Qwen/Qwen3-0.6B", quant="q8_0")),
        ("https://huggingface.co/Qwen/Qwen3-0.6B/", HubName("Qwen/Qwen3-0.6B")),
        ("https://huggingface.co/Qwen/Qwen3-0.6B/tree/main", HubName("Qwen/Qwen3-0.6B")),
        ("https://huggingface.co/Qwen/Qwen3-0.6B/tree/v2/", HubName("Qwen/Qwen3-0.6B", "v2")),
        ("HTTP://www.HuggingFace.co/Qwen/Qwen3-0.6B?library=mlx#files", HubName("Qwen/Qwen3-0.6B")),
        ("https://huggingface.co/a/b/tree/main/BF16?show=all", HubName("a/b", quant="BF16")),
        ("https://huggingface.co/a/b/blob/main/README.md", HubName("a/b")),
        ("https://hf.co/a/b/resolve/main/sub/c-UD-Q4_K_XL.gguf?download=true", HubName("a/b", quant="UD-Q4_K_XL")),
        ("hf.co/a/b/blob/v2/c.q8_0-00001-of-00003.GGUF", HubName("a/b", "v2", "Q8_0")),
        ("SmolLM2-135M/", CatalogueName("smollm2-135m")),
        ("qwen3:latest", CatalogueName("qwen3")),
        ("https://ollama.com/library/Llama3.2:1b", CatalogueName("llama3.2:1b")),
        ("registry.ollama.ai/library/llama3.2:latest", CatalogueName("llama3.2")),
        ("./folder", LocalPath(Path("folder"))),
        ("../folder/", LocalPath(Path("../folder"))),
        (".", LocalPath(Path())),
        ("/models/m", LocalPath(Path("/models/m"))),
        ("Model-Q4_K_M.GGUF", LocalPath(Path("Model-Q4_K_M.GGUF"))),
        ("models/sub/model.gguf", LocalPath(Path("models/sub/model.gguf"))),
    ],
)
def test_every_form_of_a_name_is_understood(text: str, name: object) -> None:
    assert parse_name(text) == name


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "1 to 256 printable characters"),
        ("a" * 300, "1 to 256 printable characters"),
        ("a\x1b[31m", "1 to 256 printable characters"),
        ("https://example.org/a/b", "no address of the hub"),
        ("a/b/c", "not the form ORG/REPO"),
        ("hf.co/a", "not the form ORG/REPO"),
        ("https://hf.co/a/b/blob/main/c.gguf", "the address of a file; give a/b, or a/b:Q4_K_M"),
        ("https://hf.co/a/b/blob/main/mmproj-F16.gguf", "the address of a file; give a/b, or a/b:Q4_K_M"),
        ("ollama.com/someone/model", "is a model of Ollama"),
        ("\u202ea/b", "1 to 256 printable characters"),
        ("a/../b", "not the form ORG/REPO"),
        ("a/b--c", "not the name of a repository"),
        ("a/b:", "after the colon of a/b: comes a quantization"),
        ("a/b:Q4 K", "after the colon"),
        ("a/b@", "after the @ of a/b@ comes a branch"),
    ],
)
def test_bad_name_is_refused_with_the_form(text: str, sentence: str) -> None:
    with pytest.raises(BadName, match=sentence) as caught:
        parse_name(text)
    assert "\n" not in str(caught.value)


@given(HUB_NAMES)
def test_canonical_name_parses_to_itself(name: HubName) -> None:
    assert parse_name(str(name)) == name


@given(HUB_NAMES, HUB_NAMES)
def test_ids_are_valid_and_differ_as_names_do(one: HubName, other: HubName) -> None:
    assert MODEL_ID.fullmatch(one.model_id)
    if (str(one).lower(), one.revision) != (str(other).lower(), other.revision):
        assert one.model_id != other.model_id


@given(st.text(max_size=40))
def test_any_text_parses_or_is_refused(text: str) -> None:
    with suppress(BadName):
        assert parse_name(text)

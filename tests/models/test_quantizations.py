"""Of the GGUF files of a repository, parts count as one model, and the largest one that fits is taken."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.errors import DownloadError
from models.quantizations import GgufModel, gguf_models, largest_that_fits, named_quant, part_names

LISTING = {
    "README.md": 1,
    "mmproj-F16.gguf": 50,
    "Tiny-Q8_0.gguf": 800,
    "Tiny-Q4_K_M.gguf": 450,
    "Tiny-UD-IQ2_XXS.gguf": 200,
    "BF16/Tiny-BF16-00001-of-00002.gguf": 900,
    "BF16/Tiny-BF16-00002-of-00002.gguf": 700,
    "Tiny-Q6_K-00001-of-00003.gguf": 100,
    "plain.GGUF": 300,
}
MODELS = st.lists(
    st.builds(GgufModel, st.sampled_from(["Q2_K", "Q4_K_M", "Q8_0", "BF16"]), st.just(("a.gguf",)), st.integers(1, 99)),
    min_size=1,
)


def test_files_are_grouped_by_model() -> None:
    assert [(model.quant, len(model.files), model.size) for model in gguf_models(LISTING)] == [
        ("UD-IQ2_XXS", 1, 200),
        ("", 1, 300),
        ("Q4_K_M", 1, 450),
        ("Q8_0", 1, 800),
        ("BF16", 2, 1600),
    ]


def test_parts_are_named_in_order() -> None:
    names = ("m-00001-of-00002.gguf", "m-00002-of-00002.gguf")
    assert part_names(names[0], 2) == part_names(names[1], 2) == names
    assert part_names("m.gguf", 1) == ("m.gguf",)


def test_quantization_is_named_in_any_case() -> None:
    assert named_quant(gguf_models(LISTING), "q4_k_m", "a/b").size == 450
    with pytest.raises(DownloadError, match="a/b has no quantization Q5_0; it has UD-IQ2_XXS, Q4_K_M, Q8_0, BF16"):
        named_quant(gguf_models(LISTING), "Q5_0", "a/b")


def test_choice_says_why() -> None:
    models = [GgufModel("Q4_K_M", ("a",), 4 * 10**9), GgufModel("Q8_0", ("b",), 8 * 10**9)]
    chosen, why = largest_that_fits(models, lambda model: model.size + 10**9, 6 * 10**9)
    assert chosen.quant == "Q4_K_M"
    assert why == ("Q4_K_M is the largest of 2 that fits: it needs 5.0 GB, and 6.0 GB are free; Q8_0 would need 9.0 GB")


@given(MODELS, st.integers(0, 200), st.integers(0, 50))
def test_chosen_model_is_the_largest_that_fits(models: list[GgufModel], free: int, more: int) -> None:
    chosen, why = largest_that_fits(models, lambda model: model.size + more, free)
    candidates = [model for model in models if model.quant != "BF16"] or models
    fitting = [model.size for model in candidates if model.size + more <= free]
    assert chosen in candidates
    assert chosen.size == (max(fitting) if fitting else min(model.size for model in candidates))
    assert ("fits" in why) == bool(fitting)

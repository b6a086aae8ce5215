"""Every family of mlx-lm computes the same, wherever it is cut, as mlx-lm's own unsplit model."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from engines.cuts import UNSPLIT_BY_MLX
from tests.support.engines import ROOT
from tests.support.mlx_families import FAMILIES

CUTS = ("[]", "[1]", "[2]", "[3]", "[1, 2, 3]")
UNSPLIT = {
    "afm7": "query, keys expected to have matching last dimension",
    **dict.fromkeys(("deepseek-v41", "gemma3n", "gemma4", "hunyuan", "rwkv7"), UNSPLIT_BY_MLX["gemma4"]),
    "looped": UNSPLIT_BY_MLX["iquestloopcoder"],
    "nanbeige": "a pass goes through its layers more than once",
    "talkie": "its layers use more than the output of the layer before",
}
"""What refusals say. Before the layer that the last ones look at, AFM could be cut."""

UNTRIED = {"gemma4", "kimi_k3", "muse_spark"}
"""The families in the placer's list that are not here: one has the layers of `gemma4_text`, one is known from mlx-lm's
source, and one runs on Apple's GPUs only."""

TOLERANCE = 1e-5
"""Of logits of about 1. On Linux they are equal to the bit; another BLAS may round a lone row differently."""


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Run `tests.support.mlx_families`."""
    command = [sys.executable, "-m", "tests.support.mlx_families", str(tmp_path_factory.mktemp("families"))]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, check=True, timeout=120)
    return json.loads(done.stdout)


@pytest.mark.parametrize("family", sorted(FAMILIES.keys() - UNSPLIT.keys()))
def test_split_family_computes_what_mlx_lm_does(results: Any, family: str) -> None:
    assert set(results[family]["differences"]) == set(CUTS)
    for cuts, difference in results[family]["differences"].items():
        assert isinstance(difference, float), (cuts, difference)
        assert difference <= TOLERANCE, cuts


@pytest.mark.parametrize("family", UNSPLIT)
def test_family_that_shares_more_than_rows_is_not_split(results: Any, family: str) -> None:
    whole, first, *split = (results[family]["differences"][cuts] for cuts in CUTS)
    assert whole <= TOLERANCE
    assert len(split) == 3
    assert all(UNSPLIT[family] in refusal and "run it on one node" in refusal for refusal in split)
    assert family == "afm7" or UNSPLIT[family] in first


def test_placer_knows_the_families_that_are_refused(results: Any) -> None:
    refused = {FAMILIES[family]["model_type"] for family in UNSPLIT}
    assert refused - {"nanbeige"} == UNSPLIT_BY_MLX.keys() - UNTRIED, "Nanbeige is split unless its settings loop"


def test_shard_without_one_of_its_tensors_is_refused(results: Any) -> None:
    assert "gives no numbers" in results["without"]["None"], "embedding, norm and head"
    assert "the checkpoint has no model.layers.2." in results["without"]["2"]


def test_only_plain_caches_can_be_saved(results: Any) -> None:
    saves = {family for family in FAMILIES if results[family]["saves"]}
    assert saves == {
        "deepseek-v3",
        "glm4",
        "hunyuan",
        "llama-4bit",
        "llama-8bit",
        "mistral",
        "mistral-16bit",
        "newer-rope",
        "qwen3-moe",
        "talkie",
    }


def test_copies_keep_every_bit(results: Any) -> None:
    restored = {family: results[family]["restored"] for family in FAMILIES if results[family]["saves"]}
    assert restored == dict.fromkeys(restored, 0.0)


def test_position_takes_what_the_family_caches(results: Any) -> None:
    layers, heads, width, number_bytes = 4, 2, 8, 4
    plain = layers * heads * 2 * width * number_bytes
    assert results["mistral"]["position_bytes"] == results["gemma3"]["position_bytes"] == plain
    assert results["mistral-16bit"]["position_bytes"] == plain / 2, "the stored dtype is kept"
    assert results["deepseek-v3"]["position_bytes"] == layers * (16 + 8) * number_bytes  # latent and rope
    assert plain / 2 <= results["qwen3-next"]["position_bytes"] < plain  # half of its layers are recurrent

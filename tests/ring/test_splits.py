"""A model gives the same tokens however it is split over stages and engines: every split, real decode steps."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from cluster.sampling import SamplingParams
from cluster.shard import whole
from engines.numpy.engine import NumpyEngine
from engines.settings import CHOSEN
from models.architecture import Dtype
from models.tokenizers.tokenizer import Tokenizer
from models.weights.reader import Weights, open_weights
from tests.support.engines import (
    TINY_TOLERANCES,
    EngineProcess,
    Forwards,
    Generation,
    Ring,
    cut,
    largest_difference,
)
from tests.support.models import default_model_path, write_tiny_llama

DEFAULT, LAYERS = "smollm2-135m", 30
SPLITS: list[tuple[int, ...]] = [(layer,) for layer in range(1, LAYERS)]
MORE_STAGES: list[tuple[int, ...]] = [(10, 20), (7, 15, 22), tuple(range(1, LAYERS))]

STEPS = 32
TINY_LAYERS = 4
PROMPT = [5, 250, 17, 99, 3, 3, 120, 64, 200, 31, 7]
TINY_TOLERANCE = TINY_TOLERANCES["float32"]


class WeightsInMemory:
    """The default model's tensors, each unpacked once and given to every stage of every split."""

    repository = None

    def __init__(self, weights: Weights) -> None:
        self.architecture, self.settings = weights.architecture, weights.settings
        self._names = weights.names()
        self.tensor = cache(weights.tensor)
        self.blocks, self.form = weights.blocks, weights.form

    def names(self) -> frozenset[str]:
        return self._names


@pytest.fixture(scope="module")
def default_weights() -> WeightsInMemory:
    return WeightsInMemory(open_weights(default_model_path()))


@pytest.fixture(scope="module")
def default_prompt() -> list[int]:
    tokenizer = Tokenizer.load(default_model_path().parent)
    assert tokenizer.chat_template is not None
    message = {"role": "user", "content": "Tell me how rivers are made."}
    return tokenizer.encode(tokenizer.chat_template.render([message]))


def numpy_ring(weights: Weights, *cuts: int) -> Ring:
    stages = []
    for shard in cut(DEFAULT, LAYERS, *cuts):
        engine = NumpyEngine()
        engine.read(shard, weights)
        stages.append(engine)
    return Ring(stages, carried=weights.architecture.dtype)


@pytest.fixture(scope="module")
def unsplit(default_weights: WeightsInMemory, default_prompt: list[int]) -> Generation:
    return numpy_ring(default_weights).generate(default_prompt, STEPS)


@pytest.mark.parametrize(
    "cuts", SPLITS + MORE_STAGES, ids=lambda cuts: f"{len(cuts) + 1} stages, the first of {cuts[0]}"
)
def test_default_models_bits_survive_any_split(
    cuts: tuple[int, ...], default_weights: WeightsInMemory, default_prompt: list[int], unsplit: Generation
) -> None:
    split = numpy_ring(default_weights, *cuts).generate(default_prompt, STEPS)
    assert split.tokens == unsplit.tokens
    # Boundaries carry float16, as every layer's rows are rounded, so not even the last bit may differ.
    np.testing.assert_array_equal(split.logits, unsplit.logits)


def test_sampled_tokens_are_the_same_on_any_ring(
    default_weights: WeightsInMemory, default_prompt: list[int], unsplit: Generation
) -> None:
    params = SamplingParams(temperature=0.8, seed=7)
    one, two, three = (
        numpy_ring(default_weights, *cuts).generate(default_prompt, STEPS, params).tokens
        for cuts in ((), (13,), (9, 21))
    )
    assert one == two == three
    assert one != unsplit.tokens
    another_seed = SamplingParams(temperature=0.8, seed=8)
    assert numpy_ring(default_weights).generate(default_prompt, STEPS, another_seed).tokens != one


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def tiny_reference(tiny: Path) -> Generation:
    engine = NumpyEngine()
    engine.load(whole("tiny", TINY_LAYERS), tiny)
    return Ring([engine]).generate(PROMPT, 32)


@pytest.fixture(scope="module")
def process() -> Iterator[EngineProcess]:
    with EngineProcess() as process:
        yield process


TinyHalves = dict[tuple[str, int], tuple[Forwards, Forwards]]


@pytest.fixture(scope="module")
def tiny_halves(process: EngineProcess, tiny: Path) -> TinyHalves:
    """Load both halves of the tiny model for every engine and split."""
    return {
        (name, layer): (process.load(name, first, tiny), process.load(name, last, tiny))
        for name in CHOSEN
        for layer in range(1, TINY_LAYERS)
        for first, last in [cut("tiny", TINY_LAYERS, layer)]
    }


@pytest.mark.parametrize("layer", range(1, TINY_LAYERS))
@pytest.mark.parametrize("last_engine", CHOSEN)
@pytest.mark.parametrize("first_engine", CHOSEN)
def test_any_two_engines_give_the_references_tokens(
    first_engine: str, last_engine: str, layer: int, tiny_halves: TinyHalves, tiny_reference: Generation
) -> None:
    made = Ring([tiny_halves[first_engine, layer][0], tiny_halves[last_engine, layer][1]]).generate(PROMPT, 32)
    assert made.tokens == tiny_reference.tokens
    assert largest_difference(made, tiny_reference) < TINY_TOLERANCE


@pytest.mark.parametrize("name", CHOSEN)
def test_one_layer_per_stage_gives_the_references_tokens(
    name: str, process: EngineProcess, tiny: Path, tiny_reference: Generation
) -> None:
    stages = [process.load(name, shard, tiny) for shard in cut("tiny", TINY_LAYERS, 1, 2, 3)]
    made = Ring(stages).generate(PROMPT, 32)
    assert made.tokens == tiny_reference.tokens
    assert largest_difference(made, tiny_reference) < TINY_TOLERANCE


@pytest.mark.parametrize("name", CHOSEN)
def test_untied_model_gives_the_references_tokens(name: str, process: EngineProcess, tmp_path: Path) -> None:
    path = write_tiny_llama(tmp_path, tie=False)
    whole_model, *halves = (
        process.load(name, shard, path) for shard in cut("tiny", TINY_LAYERS) + cut("tiny", TINY_LAYERS, 2)
    )
    unsplit, split = Ring([whole_model]).generate(PROMPT, 8), Ring(halves).generate(PROMPT, 8)
    assert split.tokens == unsplit.tokens
    assert largest_difference(split, unsplit) < TINY_TOLERANCE


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", CHOSEN)
def test_16_bit_hidden_states_lose_nothing(name: str, dtype: Dtype, process: EngineProcess, tmp_path: Path) -> None:
    path = write_tiny_llama(tmp_path, dtype=dtype)
    whole_model, *parts = (
        process.load(name, shard, path) for shard in cut("tiny", TINY_LAYERS) + cut("tiny", TINY_LAYERS, 1, 3)
    )
    assert parts[0].activations() == dtype
    unsplit, split = (
        Ring([whole_model]).generate(PROMPT, 16),
        Ring(parts, carried=dtype).generate(PROMPT, 16),
    )
    np.testing.assert_array_equal(split.logits, unsplit.logits)

"""A model of the hub that no card names gets one from its own settings or header, before its weights are fetched."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import msgspec
import pytest

from cluster.capabilities import DeviceCapabilities
from cluster.shard import whole
from models.cache import ModelCache
from models.card import HubSource, ModelCard, compare_sizes
from models.errors import DownloadError, NotOnHub, TokenizerError, WeightsError, WrongCard
from models.names import HubName
from models.sources import gguf_headers, hub_listing, safetensors_headers
from models.sources.fetch import describe, fetch, search
from models.tokenizers.tokenizer import Tokenizer
from models.weights.reader import open_weights, sizes_of
from models.weights.safetensors_weights import INDEX
from tests.support.model_servers import COMMIT, FakeServer, fake_hub, ignore
from tests.support.models import TinyVocabulary, write_tiny_gguf

REPO = "Tiny/Llama"


@pytest.fixture
def quantized(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeServer]:
    """Run a hub with a repository of three GGUF models, one of them in parts."""
    folder = tmp_path / "ggufs"
    write_tiny_gguf(folder / "Tiny-Q4_1.gguf", quantization="Q4_1")
    write_tiny_gguf(folder / "Tiny-Q8_0.gguf", quantization="Q8_0")
    write_tiny_gguf(folder / "F32" / "Tiny-F32.gguf", split_tensors=20)
    with ExitStack() as stack:
        server = stack.enter_context(fake_hub(folder))
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        yield server


def test_card_is_made_from_the_settings(hub: FakeServer, cache: ModelCache, hub_card: ModelCard) -> None:
    card = describe(HubName(REPO), cache).card
    assert (card.id, card.made_from, card.source) == ("tiny--llama", REPO, HubSource(REPO, COMMIT))
    weights = [content for name, content in hub.files.items() if name.endswith(".safetensors")]
    assert card.size_bytes == sum(map(len, weights))
    for name in ("family", "n_layers", "layer_bytes", "embedding_bytes", "context_length", "tied_embedding"):
        assert getattr(card, name) == getattr(hub_card, name)
    read = open_weights(fetch(card, whole(card.id, 4), cache, ignore))
    compare_sizes(card, sizes_of(read), Path())


def test_headers_of_all_files_are_read_and_no_more(
    hub: FakeServer, cache: ModelCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(safetensors_headers, "FIRST_BYTES", 300)
    describe(HubName(REPO), cache)
    weights = sorted(name for name in hub.files if name.endswith(".safetensors"))
    read = sorted((name, first) for name, first in hub.first_bytes if name in weights)
    assert read == [(name, first) for name in weights for first in (0, 300)]


@pytest.mark.parametrize(
    ("name", "old", "new", "sentence"),
    [
        (
            "model-00002-of-00004.safetensors",
            b'"shape": [64, 128]',
            b'"shape": [128, 64]',
            r"^model-00002-of-00004\.safetensors of Tiny/Llama holds model\.layers\.1\.mlp\.down_proj\.weight as "
            r"\[128, 64\], but its configuration says \[64, 128\]: it is damaged, pick another model",
        ),
        (
            "model-00001-of-00004.safetensors",
            b'"data_offsets": [0, ',
            b'"data_offsets": [9, ',
            "model-00001-of-00004.safetensors of Tiny/Llama gives .* a shape that does not fit its bytes",
        ),
        ("model-00003-of-00004.safetensors", b"BF16", b"BF61", "Tiny/Llama stores .* as BF61, but exobus reads F32"),
        ("model-00003-of-00004.safetensors", b"{", b"[", "of Tiny/Llama has a header that is not of the safetensors"),
        (
            INDEX,
            b'"lm_head.weight": "model-00004',
            b'"lm_head.weight": "model-00001',
            "says that model-00001-of-00004.safetensors holds lm_head.weight, which it does not",
        ),
        (INDEX, b"model-00002-of-00004", b"../00002-of-00004", "names the file '../00002-of-00004.safetensors', which"),
        (INDEX, b"model-00002-of-00004", b"model-00009-of-00004", "lacks model-00009-of-00004.safetensors, which"),
        (INDEX, b"lm_head.weight", b"my_head.weight", "has no lm_head.weight, though config.json says that the model"),
    ],
    ids=["shape", "offsets", "dtype", "header", "place", "unsafe", "absent", "head"],
)
def test_damaged_safetensors_are_refused_unfetched(
    hub: FakeServer, cache: ModelCache, name: str, old: bytes, new: bytes, sentence: str
) -> None:
    assert old in hub.files[name]
    hub.files[name] = hub.files[name].replace(old, new)
    with pytest.raises(WeightsError, match=sentence):
        describe(HubName(REPO), cache)


def test_recommended_sampling_becomes_the_default(hub: FakeServer, cache: ModelCache) -> None:
    hub.files["generation_config.json"] = b'{"temperature": 0.6, "top_k": 20, "top_p": 7}'
    defaults = describe(HubName(REPO), cache).card.defaults
    assert (defaults.temperature, defaults.top_k, defaults.top_p) == (0.6, 20, 1.0)


@pytest.mark.parametrize(("quant", "files"), [("q8_0", 1), ("F32", 2)])
def test_named_quantization_is_described_by_its_headers(
    quantized: FakeServer, cache: ModelCache, monkeypatch: pytest.MonkeyPatch, quant: str, files: int
) -> None:
    monkeypatch.setattr(gguf_headers, "FIRST_BYTES", 4096)
    described = describe(HubName(REPO, quant=quant), cache)
    card = described.card
    assert (card.id, card.made_from) == (f"tiny--llama--{quant.lower()}", f"{REPO}:{quant.upper()}")
    assert isinstance(card.source, HubSource)
    assert len(card.source.files) == files
    assert described.why == ""
    assert {asked for _, asked in quantized.first_bytes} >= {0, 4096}, "the header was not read by ranges"
    weights = open_weights(fetch(card, whole(card.id, 4), cache, ignore))
    assert weights.tensor("model.layers.3.mlp.down_proj.weight").shape == (64, 128)


def test_card_of_a_fetched_gguf_is_compared_again(quantized: FakeServer, cache: ModelCache) -> None:
    card = describe(HubName(REPO, quant="Q8_0"), cache).card
    fetch(card, whole(card.id, 4), cache, ignore)
    before = len(quantized.requests)
    with pytest.raises(WrongCard, match="says that its hidden_size is 65, but that of"):
        fetch(msgspec.structs.replace(card, hidden_size=65), whole(card.id, 4), cache, ignore)
    assert len(quantized.requests) == before


def test_gateway_of_a_gguf_fetches_its_header_only(
    quantized: FakeServer, cache: ModelCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gguf_headers, "FIRST_BYTES", 4096)
    card = describe(HubName(REPO, quant="Q8_0"), cache).card
    header = fetch(card, None, cache, ignore)
    assert Tokenizer.load(cache.folder(card)).chat_template is not None
    size = len(quantized.files["Tiny-Q8_0.gguf"])
    assert header.stat().st_size == size
    assert header.read_bytes()[size // 2 :] == bytes(size - size // 2)
    before = len(quantized.requests)
    fetch(card, None, cache, ignore)
    assert len(quantized.requests) == before


def test_largest_quantization_that_fits_is_chosen(quantized: FakeServer, cache: ModelCache) -> None:
    sizes = {name: len(content) for name, content in quantized.files.items()}
    kv_bytes = 4 * 2 * 2 * 16 * 4 * 512
    large, small = (
        DeviceCapabilities(memory_available=free, engine="llamacpp")
        for free in (1 << 30, sizes["Tiny-Q4_1.gguf"] + kv_bytes)
    )
    roomy, tight = describe(HubName(REPO), cache, [large]), describe(HubName(REPO, quant="auto"), cache, [small])
    assert roomy.card.made_from == f"{REPO}:Q8_0"
    assert tight.card.made_from == f"{REPO}:Q4_1"
    assert "Q8_0 is the largest of 2 that fits" in roomy.why
    assert tight.why.endswith("with a context of 512")


def test_unknown_quantization_names_those_there(quantized: FakeServer, cache: ModelCache) -> None:
    with pytest.raises(DownloadError, match="has no quantization Q5_K_M; it has Q4_1, Q8_0, F32"):
        describe(HubName(REPO, quant="Q5_K_M"), cache)


def test_repository_without_a_model_is_refused(hub: FakeServer, cache: ModelCache) -> None:
    hub.files.clear()
    hub.files["README.md"] = b"empty"
    with pytest.raises(DownloadError, match=r"has neither safetensors files with a config\.json nor GGUF files"):
        describe(HubName(REPO), cache)


def test_unsupported_family_is_named(hub: FakeServer, cache: ModelCache) -> None:
    hub.files["config.json"] = b'{"model_type": "mamba"}'
    with pytest.raises(WeightsError, match=r"config\.json of Tiny/Llama is of the family 'mamba', and does not say"):
        describe(HubName(REPO), cache)


@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        (["adapter_config.json", "adapter_model.safetensors"], r"Tiny/Llama is an adapter \(LoRA\)"),
        (["pytorch_model.bin", "config.json"], "has its weights as PyTorch files only"),
        (["big-00001-of-00002.gguf"], "lacks a part of each of its split GGUF models"),
        (["mmproj-F16.gguf"], r"has only GGUF files that go with a model \(mmproj, imatrix\)"),
        (["README.md"], "has neither safetensors files"),
    ],
)
def test_repository_of_something_else_says_what_it_is(
    hub: FakeServer, cache: ModelCache, files: list[str], sentence: str
) -> None:
    hub.files = dict.fromkeys(files, b"{}")
    with pytest.raises(NotOnHub, match=sentence):
        describe(HubName(REPO), cache)


@pytest.mark.parametrize("names", [("MODEL V1+2 (Q8_0).GGUF",), ("M-00001-OF-00002.GGUF", "M-00002-OF-00002.GGUF")])
def test_files_of_unusual_names_are_fetched(
    quantized: FakeServer, cache: ModelCache, tmp_path: Path, names: tuple[str, ...]
) -> None:
    path = write_tiny_gguf(tmp_path / "m.gguf", quantization="Q8_0", split_tensors=20 if len(names) > 1 else 0)
    written = sorted(tmp_path.glob(f"{path.stem}*.gguf"))
    quantized.files = dict(zip(names, [file.read_bytes() for file in written], strict=True))
    card = describe(HubName(REPO), cache).card
    weights = open_weights(fetch(card, whole(card.id, 4), cache, ignore))
    assert "model.layers.3.mlp.down_proj.weight" in weights.names()


def test_weights_without_all_layers_are_refused_unfetched(hub: FakeServer, cache: ModelCache) -> None:
    hub.files["config.json"] = hub.files["config.json"].replace(b'"num_hidden_layers": 4', b'"num_hidden_layers": 5')
    with pytest.raises(WeightsError, match=r"^Tiny/Llama lacks model\.layers\.4\.\S+, which its settings ask for"):
        describe(HubName(REPO), cache)


@pytest.mark.parametrize("text", [b"<html>", b"[]", b"[" * 100_000], ids=["html", "list", "deep"])
def test_settings_that_are_no_object_are_refused(hub: FakeServer, cache: ModelCache, text: bytes) -> None:
    hub.files["config.json"] = text
    with pytest.raises(WeightsError, match=r"config\.json of Tiny/Llama is not a JSON object"):
        describe(HubName(REPO), cache)


@pytest.mark.parametrize("text", [b"<html>", b"[]", b'{"siblings": 3}', b"[" * 100_000])
def test_listing_of_another_kind_is_refused(hub: FakeServer, cache: ModelCache, text: bytes) -> None:
    hub.faults.instead["model info"] = text
    with pytest.raises(DownloadError, match="the hub's listing of Tiny/Llama cannot be read; check HF_ENDPOINT"):
        describe(HubName(REPO), cache)


@pytest.mark.parametrize("wait", ["SILENCE_TIMEOUT_S", "READ_TIMEOUT_S"])
def test_hub_that_hangs_or_drips_is_given_up(
    hub: FakeServer, cache: ModelCache, monkeypatch: pytest.MonkeyPatch, wait: str
) -> None:
    monkeypatch.setattr(hub_listing, wait, 0.2)
    monkeypatch.setattr(hub_listing, "LEAST_BYTES_PER_S", 1 << 40)
    hub.faults.drip_s["model info"] = 60.0 if wait == "SILENCE_TIMEOUT_S" else 0.05
    with pytest.raises(DownloadError, match=r"could not be reached for|sends too slowly"):
        describe(HubName(REPO), cache)


def test_damaged_header_is_refused(quantized: FakeServer, cache: ModelCache) -> None:
    quantized.files["Tiny-Q8_0.gguf"] = b"GGUF" + bytes(9000)
    with pytest.raises(WeightsError, match=r"^\S+\.gguf of Tiny/Llama is GGUF of version 0"):
        describe(HubName(REPO, quant="Q8_0"), cache)
    assert not list(cache.root.rglob("*.part"))


def test_search_lists_what_the_hub_finds(hub: FakeServer) -> None:
    assert search("llama") == ["tiny/llama"]
    assert search("qwen") == []


def test_search_says_that_the_hub_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(DownloadError, match="the hub could not be reached for llama"):
        search("llama")


def test_unknown_split_rule_is_refused_unfetched(quantized: FakeServer, cache: ModelCache, tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "Rule-Q8_0.gguf", n_layers=1, vocabulary=TinyVocabulary(pre="abacus"))
    quantized.files = {path.name: path.read_bytes()}
    with pytest.raises(TokenizerError, match=r"^Rule-Q8_0\.gguf of Tiny/Llama splits texts by the rule 'abacus'"):
        describe(HubName(REPO), cache)

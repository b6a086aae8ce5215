"""What `exobus models` prints follows from what a gateway reports, and keeps to 80 columns."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from cli.models.tables import card_from, details_of, list_of, loaded_of, plan_of, plan_rows
from cluster.capabilities import DeviceCapabilities
from cluster.placement import DoesNotFit
from cluster.topology import NodeRecord, Topology
from models.card import HubSource
from models.catalogue import Catalogue
from tests.support.model_servers import tiny_card

MIB = 1 << 20
SIZES = msgspec.to_builtins(msgspec.structs.replace(tiny_card(HubSource("a/b")), aliases=("t",)))


def model(**changes: Any) -> dict[str, Any]:
    """Return what a gateway reports of the tiny model, with changes."""
    reported = {**SIZES, "from": "a/b", "own": False, "engine": None, "downloaded_bytes": 0, "why": ""}
    return reported | changes


def topology(*memory: int, loaded: tuple[str, ...] = (), idle_s: int = 0, frees: int = 0) -> dict[str, Any]:
    """Return what a gateway reports of nodes with so much free memory, the first of which holds the loaded models.

    Those are in use, or idle for so many seconds, and the end of each frees so many bytes.
    """
    nodes = [
        NodeRecord(str(n), f"node-{n}", 1, 1, DeviceCapabilities(memory_available=free, memory_total=free))
        for n, free in enumerate(memory)
    ]
    stage = {"node": "node-0", "node_id": "0", "start_layer": 0, "end_layer": 4, "n_layers": 4, "frees": frees}
    instances = [
        {"model": model_id, "instance_id": model_id, "epoch": 1, "idle_s": idle_s, "stages": [stage]}
        for model_id in loaded
    ]
    return {**msgspec.to_builtins(Topology(1, tuple(nodes))), "instances": instances}


def fits_and_here(reported: dict[str, Any], graph: dict[str, Any]) -> tuple[str, str]:
    """Return the last two cells of a model's row."""
    heads, row = list_of([reported], graph).splitlines()
    fits, here = heads.index("FITS"), heads.index("HERE")
    return row[fits:here].strip(), row[here:].strip()


@pytest.mark.parametrize(
    ("changes", "free", "cells"),
    [
        ({}, 64 * MIB, ("yes", "-")),
        ({}, MIB, ("no", "-")),
        ({"downloaded_bytes": MIB}, 64 * MIB, ("yes", "disk")),
        ({"downloaded_bytes": MIB // 2}, 64 * MIB, ("yes", "50 %")),
        ({"own": True}, 64 * MIB, ("yes", "own")),
        ({"engine": "mlx"}, 64 * MIB, ("needs mlx", "-")),
        ({"n_layers": 0}, 64 * MIB, ("?", "-")),
    ],
)
def test_list_says_what_fits_and_what_is_here(changes: dict[str, Any], free: int, cells: tuple[str, str]) -> None:
    assert fits_and_here(model(**changes), topology(free)) == cells


def test_loaded_model_fits_whatever_is_free() -> None:
    assert fits_and_here(model(), topology(MIB, loaded=("tiny",))) == ("yes", "loaded")


@pytest.mark.parametrize(("idle_s", "cells"), [(9, ("yes", "-")), (0, ("no", "-"))], ids=["idle", "in use"])
def test_model_that_idle_ones_give_way_to_fits(idle_s: int, cells: tuple[str, str]) -> None:
    graph = topology(MIB, loaded=("other",), idle_s=idle_s, frees=64 * MIB)
    assert fits_and_here(model(), graph) == cells


def test_plan_names_the_models_that_give_way() -> None:
    shown = plan_of(model(), topology(MIB, loaded=("other",), idle_s=9, frees=64 * MIB))
    assert shown.endswith("\n\nidle models that are unloaded before: other")


@pytest.mark.parametrize(("idle_s", "shown"), [(0, "in use"), (119, "119 s"), (7199, "119 min"), (7200, "2 h")])
def test_loaded_models_are_shown_with_nodes_and_idle_time(idle_s: int, shown: str) -> None:
    heads, row = loaded_of(topology(MIB, loaded=("tiny",), idle_s=idle_s)).splitlines()
    assert heads.split() == ["LOADED", "NODES", "IDLE"]
    assert row.split(maxsplit=2) == ["tiny", "node-0", shown]


def test_list_keeps_to_80_columns() -> None:
    longest = model(id="deepseek-r1-distill-qwen-1.5b", params="1.5B", size_bytes=99 * 10**9, context_length=131072)
    assert max(map(len, list_of([longest], topology(64 * MIB)).splitlines())) <= 80


def test_plan_tiles_the_layers_over_the_nodes() -> None:
    rows = plan_rows(model(), topology(64 * MIB, 64 * MIB), 512)
    assert [(row["node"], row["start_layer"], row["end_layer"]) for row in rows] == [("node-0", 0, 2), ("node-1", 2, 4)]
    card = card_from(model())
    assert sum(row["bytes"] for row in rows) >= 4 * card.layer_bytes
    assert "would load" in plan_of(model(), topology(64 * MIB))
    assert plan_of(model(why="it is the largest"), topology(64 * MIB)).startswith("tiny: it is the largest")


def test_plan_says_why_a_model_is_not_split() -> None:
    graph = topology(64 * MIB, 96 * MIB)
    for node in graph["nodes"]:
        node["capabilities"]["engine"] = "mlx"
    unsplit = model(family="gemma4", engine="mlx")
    (row,) = plan_rows(unsplit, graph)
    assert (row["node"], row["start_layer"], row["end_layer"]) == ("node-1", 0, 4)
    assert plan_of(unsplit, graph).startswith("tiny: MLX runs models of the family 'gemma4' on one node only")
    assert len(plan_rows(model(family="glm4", engine="mlx"), graph)) == 2


def test_plan_names_the_bits_of_the_ring() -> None:
    card = msgspec.to_builtins(Catalogue.load().get("llama-3.2-3b"))
    for free, bits in ((3_000_000_000, 8), (2_300_000_000, 4)):
        graph = topology(free, free + 10**8)
        for node in graph["nodes"]:
            node["capabilities"] |= {"engine": "onnx", "precision": "fast", "quantize": "auto"}
        assert [row["quantized_bits"] for row in plan_rows(model(**card), graph)] == [bits, bits]
        heads, first, _ = plan_of(model(**card), graph).splitlines()
        assert first[heads.index("BITS") :].startswith(f"{bits} ")


def test_plan_counts_the_context() -> None:
    large = model(context_length=1 << 20)
    plan_rows(large, topology(16 * MIB), 4096)
    with pytest.raises(DoesNotFit, match="tiny needs"):
        plan_rows(large, topology(16 * MIB), 1 << 20)


def test_plan_says_where_the_context_ends() -> None:
    beyond, within = (plan_of(model(context_length=512), topology(64 * MIB), context) for context in (513, 512))
    assert "its context ends at 512 positions, which are counted in place of 513" in beyond
    assert "its context ends" not in within


def test_plan_of_a_loaded_model_is_where_it_runs() -> None:
    assert "loaded" in plan_of(model(), topology(MIB, loaded=("tiny",)))


def test_details_name_sizes_memory_and_source() -> None:
    text = details_of(model(license="mit"))
    for part in ("4 layers of 64, 4 heads (2 of keys), 264 tokens", "512 positions", "mit", "a/b", "for weights"):
        assert part in text
    assert "only by the engine mlx" in details_of(model(n_layers=0, engine="mlx"))

"""A ring of llama.cpp with the default model writes the text of a single node; a node compares it on that model."""

from __future__ import annotations

import re
from pathlib import Path

from openai import OpenAI

from models.catalogue import DEFAULT_MODEL
from tests.nodes.test_nodes import wait_for_nodes, wait_for_ring
from tests.support.gateway.gateway_rig import eventually
from tests.support.gguf_models import write_model
from tests.support.models import TinyVocabulary
from tests.support.nodes import NodeProcess, free_udp_port, nodes

ARGUMENTS = ["--engine", "llamacpp", "--threads", "1"]


def text(node: NodeProcess, model: str = DEFAULT_MODEL) -> str:
    """Return the answers to two questions, of which the second begins like the first."""
    with OpenAI(base_url=f"{node.api}/v1", api_key="none", max_retries=0, timeout=120.0) as chats:
        answers = [
            chats.chat.completions.create(
                model=model, messages=[{"role": "user", "content": question}], temperature=0, max_tokens=32
            )
            for question in ("Tell me how rivers are made." * 5, "Tell me how rivers are made." * 5 + " Be brief.")
        ]
    return "\n".join(answer.choices[0].message.content or "" for answer in answers)


def test_ring_of_llamacpp_writes_what_one_node_writes() -> None:
    arguments = [*ARGUMENTS, "--discovery-port", str(free_udp_port())]
    with nodes("ada", arguments=arguments) as (ada,):
        alone = text(ada)
        assert len(alone) > 100
        with nodes("bob", arguments=arguments):
            wait_for_ring(ada, "ada", "bob")
            assert text(ada) == alone


def holders(node: NodeProcess, model: str) -> list[str]:
    """Return the names of the nodes that hold the stages of a model."""
    instances = node.get("/v1/topology")["instances"]
    return [stage["node"] for instance in instances if instance["model"] == model for stage in instance["stages"]]


def test_ring_is_cut_where_the_architecture_may_be(tmp_path: Path) -> None:
    names = ("my-olmo", "my-olmo2", "my-smollm3")  # runs whole; is cut anywhere; is cut at each fourth layer
    for name in names:
        write_model(tmp_path / f"{name}.gguf", name.removeprefix("my-"), "Q8_0", TinyVocabulary())
    arguments = [*ARGUMENTS, "--models-dir", str(tmp_path), "--discovery-port", str(free_udp_port())]
    with nodes("ada", arguments=arguments) as (ada,):
        alone = [text(ada, name) for name in names]
        with nodes("bob", arguments=arguments) as (bob,):
            wait_for_nodes(bob, 2)
            assert eventually(lambda: sorted(holders(bob, "my-olmo2")) == ["ada", "bob"])
            assert eventually(lambda: sorted(holders(bob, "my-smollm3")) == ["ada", "bob"])
            assert len(holders(bob, "my-olmo")) == 1
            for node in (ada, bob):
                assert [text(node, name) for name in names] == alone


def test_engines_are_compared_on_the_model() -> None:
    with nodes("ada", arguments=["--threads", "1"]) as (ada,):
        assert text(ada)
        ((stage,),) = (instance["stages"] for instance in ada.get("/v1/topology")["instances"])
        measured = ada.get("/v1/topology")["nodes"][0]["capabilities"]["engines"]
    assert stage["engine"] in ("onnx", "llamacpp"), measured
    assert re.search(r"onnx [\d.]+ and [\d.]+ ms", stage["why"]), measured
    assert re.search(r"llamacpp [\d.]+ and [\d.]+ ms", stage["why"])

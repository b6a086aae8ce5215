"""`gateway.openai.family`: the list of models, of a real gateway."""

from __future__ import annotations

import httpx
import openai
import pytest

from bus.messages import InstanceUp
from cluster.topology import RecordNumber
from tests.support.gateway.gateway_rig import MODEL, Rig, eventually


def test_models_are_listed_and_found_by_name(client: openai.OpenAI) -> None:
    assert {"tiny", "smollm2-135m"} <= {model.id for model in client.models.list()}
    assert client.models.retrieve("tiny-chat").id == MODEL
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("tinny")
    assert caught.value.code == "model_not_found"


@pytest.mark.parametrize("name", ["no/such", "no%2Fsuch", "no/such:Q4_K_M"])
def test_unknown_repository_is_refused_at_once(client: openai.OpenAI, name: str) -> None:
    with pytest.raises(openai.NotFoundError, match="the hub of these tests has no repositories") as caught:
        client.get(f"/models/{name}", cast_to=object, options={"timeout": 10.0, "max_retries": 0})
    assert caught.value.code == "model_not_found"


def test_loaded_model_names_its_quantization(rig: Rig) -> None:
    def said(model: str) -> object:
        return httpx.get(f"{rig.url}/v1/models/{model}").json()["quantization"]

    rig.node.publish(InstanceUp(rig.instance, (RecordNumber(1, 1),)))
    assert eventually(lambda: said(MODEL) == "8 bits")
    assert said("smollm2-135m") is None

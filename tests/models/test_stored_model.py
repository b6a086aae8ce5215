"""A model is described, left to the engine that runs other families, or refused because it generates no text."""

from __future__ import annotations

import pytest

from models.errors import WeightsError
from models.settings import Settings
from models.stored_model import model_of

SIZES = {"num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 4, "vocab_size": 99}


def settings(family: str, *classes: str) -> Settings:
    return Settings(SIZES | {"model_type": family, "architectures": list(classes)}, "config.json of a/b")


@pytest.mark.parametrize("name", ["BertModel", "BertForMaskedLM", "XBertForSequenceClassification", "T5ForPreTraining"])
def test_encoder_is_refused_by_its_class(name: str) -> None:
    with pytest.raises(WeightsError, match=f"config.json of a/b is of the family 'bert' and the class {name}, which"):
        model_of(settings("bert", name))


@pytest.mark.parametrize("family", [5, ["llama"], {"llama": 1}])
def test_family_that_is_no_text_is_refused(family: object) -> None:
    with pytest.raises(WeightsError, match=r"config\.json of a/b gives model_type as .*; pick another model"):
        model_of(Settings(SIZES | {"model_type": family}, "config.json of a/b"))


@pytest.mark.parametrize("classes", [(), ("GPT2LMHeadModel",), ("Glm4ForCausalLM",), ("GlmModel", "GlmForCausalLM")])
def test_other_families_are_left_to_their_engine(classes: tuple[str, ...]) -> None:
    assert "is of the family 'glm4'" in model_of(settings("glm4", *classes)).undescribed

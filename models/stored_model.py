"""What the settings of a model's files say of it: whether exobus describes it, and its sizes. Reads no file."""

from __future__ import annotations

import re
from dataclasses import dataclass

from models.any_family import any_sizes
from models.architecture import Architecture
from models.card import Engine
from models.errors import WeightsError
from models.families import FAMILIES, described
from models.settings import Settings
from models.sizes import ModelSizes, model_sizes


@dataclass(frozen=True, slots=True)
class StoredModel:
    """A model of which the files are here, or the settings.

    `undescribed` says why the engines that build from a description cannot run it, as what follows the name of its
    `config.json` or GGUF file; "" if they can. Then only `engine` may run it, which reads the files by itself. Its
    weights may still be of a family that is `known`.
    """

    settings: Settings
    sizes: ModelSizes
    undescribed: str
    known: Architecture | None
    engine: Engine = "mlx"

    @property
    def described(self) -> Architecture | None:
        """What the model is, None if exobus does not describe it."""
        return None if self.undescribed else self.known

    @property
    def only_engine(self) -> str:
        """The only engine that may run the model; "" if every engine may that has what the model uses."""
        return self.engine if self.undescribed else ""

    @property
    def architecture(self) -> Architecture:
        """What the model is. Raises WeightsError if exobus does not describe it."""
        if self.described is None:
            other = ", or a GGUF file of this model" if self.engine == "mlx" else ""
            raise WeightsError(
                f"{self.settings.where} {self.undescribed}, which only the engine {self.engine} runs; choose it{other}"
            )
        return self.described


_NO_TEXT = re.compile(r".*(?<!LMHead)Model|.*For(MaskedLM|\w+Classification|QuestionAnswering|PreTraining)")


def _without_text(settings: Settings) -> str:
    """Return the class of an encoder, such as an embedding model; "" for any other, and if none is named."""
    classes = settings.get("architectures", [])
    names = classes if isinstance(classes, list) else []
    return str(names[0]) if names and all(_NO_TEXT.fullmatch(str(name)) for name in names) else ""


def model_of(settings: Settings) -> StoredModel:
    """Describe a model as far as exobus can. Raises WeightsError for what no engine runs."""
    model_type = settings.get("model_type")
    if not isinstance(model_type, str | None):
        raise settings.unusable("model_type")
    family = FAMILIES.get(model_type or "")
    if family is None:
        unknown = f"is of the family {model_type!r}"
        if classes := _without_text(settings):
            raise settings.unsupported(f"{unknown} and the class {classes}, which generates no text")
        try:
            sizes = any_sizes(settings)
        except WeightsError as error:
            raise settings.unsupported(f"{unknown}, and does not say its sizes as models of text do") from error
        return StoredModel(settings, sizes, unknown, None)
    known, undescribed = described(settings), ""
    if family.gguf_only:
        undescribed = f"is of the family {family.model_types[0]!r} in safetensors files"
    if settings.get("quantization") or (settings.get("quantization_config") and not has_float8(settings)):
        undescribed = "is of a quantized model"
    return StoredModel(settings, model_sizes(known), undescribed, known)


def has_float8(settings: Settings) -> bool:
    """Return whether the files store matrices as 8-bit floats with scales beside them."""
    quantization = settings.group("quantization_config")
    if quantization.get("quant_method") == "fp8":
        return True
    groups = quantization.group("config_groups").values.values()
    weights = [group.get("weights") if isinstance(group, dict) else None for group in groups]
    floats = [isinstance(kind, dict) and (kind.get("type"), kind.get("num_bits")) == ("float", 8) for kind in weights]
    return quantization.get("quant_method") == "compressed-tensors" and bool(floats) and all(floats)

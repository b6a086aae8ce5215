"""The engines by name. Importing this module imports none of them."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from types import MappingProxyType

from engines.engine import InferenceEngine
from engines.errors import EngineError
from engines.settings import ENGINES, PRECISIONS

_EXTRAS = ("mlx", "tinygrad")
"""The optional ones, installed as extras; the others come with exobus."""

_CLASSES = MappingProxyType(
    {
        "mlx": "MlxEngine",
        "llamacpp": "LlamaCppEngine",
        "tinygrad": "TinygradEngine",
        "onnx": "OnnxEngine",
        "numpy": "NumpyEngine",
    }
)
_PACKAGES = MappingProxyType(
    {
        "mlx": ("mlx", "mlx_lm"),
        "tinygrad": ("tinygrad",),
        "onnx": ("onnxruntime", "onnx"),
        "llamacpp": (),  # the engine finds its library itself
        "numpy": ("numpy",),
    }
)


def create(name: str, precision: str = "fast", bits: int = 0) -> InferenceEngine:
    """Make an engine that holds no shard yet. Of the engines but onnx and llamacpp, all are exact in any case.

    With `bits`, 8 or 4, onnx rounds float matrices to as many when it loads them; the others load them as they are.

    Raises EngineError for an unknown name or precision, one that the engine does not have, and a missing package.
    """
    if name not in ENGINES:
        raise EngineError(f"there is no engine {name!r}; choose one of {', '.join(ENGINES)}")
    if precision not in PRECISIONS:
        raise EngineError(f"there is no precision {precision!r}; choose one of {', '.join(PRECISIONS)}")
    if (name, precision) == ("llamacpp", "exact"):
        raise EngineError(
            "llamacpp computes as llama.cpp does, so it is never exact; choose another engine or precision"
        )
    missing = [package for package in _PACKAGES[name] if find_spec(package) is None]
    if missing:
        raise EngineError(f"engine {name} needs {' and '.join(missing)}: {_remedy(name)}")
    try:
        module = import_module(f"engines.{name}.engine")
    except (ImportError, OSError) as error:
        raise EngineError(f"engine {name} cannot start ({error}): {_remedy(name)}") from error
    make = getattr(module, _CLASSES[name])
    engine: InferenceEngine = make(precision, bits) if name == "onnx" else make(invariant=precision == "invariant")
    return engine


def _remedy(name: str) -> str:
    """Say how to install an engine's packages."""
    return f"pip install 'exobus[{name}]'" if name in _EXTRAS else "install exobus again"

"""The engines by name. Importing this imports none of them."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from types import MappingProxyType

from engines.engine import EngineError, InferenceEngine

ENGINES = ("mlx", "tinygrad", "onnx", "numpy")
"""The names, the likely fastest first."""

_CLASSES = MappingProxyType(
    {"mlx": "MlxEngine", "tinygrad": "TinygradEngine", "onnx": "OnnxEngine", "numpy": "NumpyEngine"}
)
_PACKAGES = MappingProxyType(
    {
        "mlx": ("mlx", "mlx_lm"),
        "tinygrad": ("tinygrad",),
        "onnx": ("onnxruntime", "onnx"),
        "numpy": ("numpy",),
    }
)


def create(name: str) -> InferenceEngine:
    """A fresh engine that holds nothing yet. EngineError for an unknown name or a package that is missing."""
    if name not in ENGINES:
        raise EngineError(f"there is no engine {name!r}; choose one of {', '.join(ENGINES)}")
    missing = [package for package in _PACKAGES[name] if find_spec(package) is None]
    if missing:
        raise EngineError(f"engine {name} needs {' and '.join(missing)}: pip install 'exobus[{name}]'")
    try:
        module = import_module(f"engines.{name}.engine")
    except (ImportError, OSError) as error:
        raise EngineError(f"engine {name} cannot start ({error}): pip install 'exobus[{name}]'") from error
    engine: InferenceEngine = getattr(module, _CLASSES[name])()
    return engine

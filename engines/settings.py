"""The names, precisions and limits of engines. Importing it loads no array library, so idle processes stay small."""

from __future__ import annotations

from typing import Literal, get_args

ENGINES = ("mlx", "llamacpp", "tinygrad", "onnx", "numpy")
"""The engines by name, the one that is probably fastest first."""

CHOSEN = tuple(name for name in ENGINES if name != "llamacpp")
"""The engines that a node chooses from by itself: they load every model that exobus does, and round its hidden states
alike. llama.cpp loads GGUF files only, so it is measured as well, but used only if it is asked for."""

MAX_SLOTS = 64
"""The most slots, one for each session, that an engine holds at a time."""

Precision = Literal["fast", "exact", "invariant"]
"""`exact`: every product is float32. `fast`: an engine may multiply a quantized matrix as the file stores it, with the
other operand rounded to 8 bits, as llama.cpp does. Engines without such a product are exact in both, and so are models
that are not quantized. `invariant`: as `fast`, by an engine whose rows do not depend on what else shares a pass."""

PRECISIONS: tuple[Precision, ...] = get_args(Precision)

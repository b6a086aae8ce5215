"""The names, precisions and limits of engines. Importing it loads no array library, so idle processes stay small."""

from __future__ import annotations

from typing import Literal, get_args

ENGINES = ("mlx", "llamacpp", "tinygrad", "onnx", "numpy")
"""The engines by name, the one that is probably fastest first."""

CHOSEN = tuple(name for name in ENGINES if name != "llamacpp")
"""The engines of which a node takes the fastest as its own: they load every model that exobus does, and round its
hidden states alike. llama.cpp loads GGUF files only, and is compared with that one on each (`engines.choice`)."""

MAX_SLOTS = 64
"""The most slots, one for each session, that an engine holds at a time."""

CUT = 32
"""Positions between two cuts of a prompt. Stored prefixes end at a cut, and so do all chunks but a last one."""

Precision = Literal["fast", "exact", "invariant"]
"""`exact`: every product is float32. `fast`: an engine may multiply a quantized matrix as the file stores it, with the
other operand rounded to 8 bits, as llama.cpp does. Engines without such a product are exact in both, and so are models
that are not quantized. `invariant`: as `fast`, and what other sessions compute or computed changes no bit of a row."""

PRECISIONS: tuple[Precision, ...] = get_args(Precision)

Quantize = Literal["auto", "none", "8", "4"]
"""To how many bits ONNX Runtime rounds float matrices when it loads them, if its precision is `fast`. `auto` is 8, or 4
if 8 do not fit the memory."""

QUANTIZE: tuple[Quantize, ...] = get_args(Quantize)

"""The precisions in which a node can run its engines. Each engine decides what it does in each."""

from __future__ import annotations

from typing import Literal, get_args

Precision = Literal["fast", "exact"]
"""`exact`: every product is float32. `fast`: an engine may multiply a quantized matrix as the file stores it, with the
other operand rounded to 8 bits, as llama.cpp does. Engines without such a product are exact in both, and so are models
that are not quantized."""

PRECISIONS: tuple[Precision, ...] = get_args(Precision)

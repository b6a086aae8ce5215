"""The precisions in which a node may run its engines. What each engine makes of them is its own."""

from __future__ import annotations

from typing import Literal, get_args

Precision = Literal["fast", "exact"]
"""`exact`: every product in float32. `fast`: an engine may multiply matrices that the file stores in few bits as they
are stored, with the other side rounded to 8 bits, as llama.cpp does. Engines that know no such product are exact in
both, and so are models that are not quantised."""

PRECISIONS: tuple[Precision, ...] = get_args(Precision)

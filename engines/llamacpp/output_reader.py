"""Takes the hidden states of one layer out of a pass, by llama.cpp's eval callback. Knows no slots."""

from __future__ import annotations

import numpy as np

from engines.engine import FloatArray
from engines.llamacpp.abi import EvalCallback
from engines.llamacpp.library import Library

_MOST_KNOWN = 1 << 16


class OutputReader:
    """Reads the output of the layer `layer` in each pass, and ends the pass there: no norm and no head is computed.

    The library asks for each of some thirty tensors a layer whether it is wanted. Reading their names takes longer than
    the question, so a tensor's address is remembered if its name was another one. A later pass may have the wanted
    tensor there; then `output` stays None, and `forget` has to be called before the pass is repeated.
    """

    def __init__(self, library: Library, layer: int) -> None:
        self._library = library
        self._name = f"l_out-{layer}".encode()
        self._others: set[int] = set()
        self.output: FloatArray | None = None
        self.callback = EvalCallback(self._called)

    def forget(self) -> None:
        """Forget all addresses."""
        self._others.clear()

    def _called(self, tensor: int, ask: bool, _user: object) -> bool:
        """Return whether a tensor is wanted or, once it is computed, whether the pass goes on."""
        if ask:
            return tensor not in self._others and self._is_wanted(tensor)
        nbytes = self._library.tensor_nbytes(tensor)
        self.output = np.empty(nbytes // 4, np.float32)
        self._library.read_tensor(tensor, self.output.ctypes.data, 0, nbytes)
        return False

    def _is_wanted(self, tensor: int) -> bool:
        if self._library.tensor_name(tensor) == self._name:
            return True
        if len(self._others) < _MOST_KNOWN:
            self._others.add(tensor)
        return False

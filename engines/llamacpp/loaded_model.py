"""One GGUF file that llama.cpp has loaded. Any number of contexts compute with its weights. Knows no rows."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from common.machine import return_mapped_pages
from engines.errors import EngineError
from engines.llamacpp.abi import ROWS_OF_FOUR_POSITIONS
from engines.llamacpp.library import Library


class LoadedModel:
    """The weights. Without a head, passes give the hidden states of the last layer."""

    def __init__(self, library: Library, path: Path, *, has_head: bool, copied: bool = False) -> None:
        """Load the file. Raises EngineError.

        With `copied` the library stores most weights in another order: the file's pages, which it has mapped, would
        stay in memory beside that copy.
        """
        self.library, self.has_head = library, has_head
        self.model = self._load(path)
        if copied:
            return_mapped_pages()
        if library.is_recurrent(self.model) or library.is_hybrid(self.model):
            self.close()
            raise EngineError(
                f"{path.name} keeps one state for all positions of a text, of which llama.cpp drops and copies no part;"
                " pick a model with attention in all layers"
            )
        self.vocab_size = int(library.n_tokens(library.vocabulary(self.model)))
        self.hidden = int(library.n_embd(self.model))
        self.n_layers = int(library.n_layers(self.model))
        self.four_positions = library.rope_type(self.model) in ROWS_OF_FOUR_POSITIONS

    def close(self) -> None:
        """Free the weights, after all contexts. Closing twice is not an error."""
        if self.model is not None:
            self.library.free_model(self.model)
        self.model = None

    def _load(self, path: Path) -> Any:
        self.library.first_error, self.library.model = "", path.name
        model = self.library.load_model(os.fsencode(path), self.library.model_params())
        if not model:
            raise EngineError(f"llama.cpp cannot load {path}: {self.library.first_error or 'it says no reason'}")
        return model

"""Finds libllama and opens it. Knows no model.

It is the library that EXOBUS_LIBLLAMA names, else that of an installed `llama-cpp-python`, else the one inside
`xllamacpp`. Its Python module is never imported: only its shared object is opened, which exports the C API.
"""

from __future__ import annotations

import ctypes
import logging
import os
from ctypes import POINTER, c_bool, c_char_p, c_float, c_int, c_int32, c_size_t, c_void_p
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from engines.errors import EngineError
from engines.llamacpp.abi import (
    CONTEXT_SENTINELS,
    LAYOUTS,
    MODEL_SENTINELS,
    AbortCallback,
    Batch,
    Layout,
    LogCallback,
)

logger = logging.getLogger(__name__)

VARIABLE = "EXOBUS_LIBLLAMA"
_SUFFIXES = (".so", ".dylib")
_PACKAGES = (("llama-cpp-python", "libllama"), ("xllamacpp", "xllamacpp"))
"""The packages that bring the library, in order, and how its file's name begins."""

_LOG_ERROR = 4
_USELESS_TO_RESTART = os.EX_CONFIG  # by this status the supervisor reports the last line of the log
_CPU, _GPU = 0, 1  # of enum ggml_backend_dev_type


class Library:
    """The functions of one libllama, with their types. A process opens it once, with `library()`, and for good: the
    library keeps pointers to its callbacks.

    `first_error` is the first error that the library has logged since it was cleared, and `model` the file that it
    works on.
    """

    def __init__(self, path: Path) -> None:
        """Open the library and test that it is laid out as one of LAYOUTS says. Raises EngineError."""
        try:
            opened = ctypes.CDLL(str(path))
            self.version = _version(opened)
            self.layout = _layout(self.version, path)
            self._declare(opened, self.layout)
        except (OSError, AttributeError) as error:
            raise EngineError(f"{path} cannot be used as libllama ({error}); {_REMEDY}") from error
        self._check_layout(path)
        self.first_error = self.model = ""
        self._log, self._abort = LogCallback(self._logged), AbortCallback(self._aborted)
        self.log_set(self._log, None)
        self.set_abort(self._abort)
        self.backend_init()
        if not self.device_count():  # a build with backends in libraries of their own, beside it
            self.load_backends(str(path.parent).encode())

    @property
    def device(self) -> str:
        """The kind of device that computes: the first GPU's, such as METAL, else CPU."""
        for index in range(self.device_count()):
            device = self.device_get(index)
            if self.device_type(device) == _GPU:
                return str(self.registry_name(self.device_registry(device)).decode()).upper()
        return "CPU"

    def _declare(self, opened: Any, layout: Layout) -> None:
        """Give each function its types. Raises AttributeError for one that the library lacks."""
        declare = _Declarations(opened)
        self.backend_init = declare(None, "llama_backend_init")
        self.log_set = declare(None, "llama_log_set", LogCallback, c_void_p)
        self.set_abort = declare(None, "ggml_set_abort_callback", AbortCallback)
        self.load_backends = declare(None, "ggml_backend_load_all_from_path", c_char_p)
        self.device_count = declare(c_size_t, "ggml_backend_dev_count")
        self.device_get = declare(c_void_p, "ggml_backend_dev_get", c_size_t)
        self.device_type = declare(c_int, "ggml_backend_dev_type", c_void_p)
        self.device_registry = declare(c_void_p, "ggml_backend_dev_backend_reg", c_void_p)
        self.registry_name = declare(c_char_p, "ggml_backend_reg_name", c_void_p)
        self.model_params = declare(layout.model_params, "llama_model_default_params")
        self.context_params = declare(layout.context_params, "llama_context_default_params")
        self.load_model = declare(c_void_p, "llama_model_load_from_file", c_char_p, layout.model_params)
        self.new_context = declare(c_void_p, "llama_init_from_model", c_void_p, layout.context_params)
        self.free_model = declare(None, "llama_model_free", c_void_p)
        self.free_context = declare(None, "llama_free", c_void_p)
        self.is_recurrent = declare(c_bool, "llama_model_is_recurrent", c_void_p)
        self.is_hybrid = declare(c_bool, "llama_model_is_hybrid", c_void_p)
        self.rope_type = declare(c_int, "llama_model_rope_type", c_void_p)
        self.n_layers = declare(c_int32, "llama_model_n_layer", c_void_p)
        self.n_embd = declare(c_int32, "llama_model_n_embd", c_void_p)
        self.vocabulary = declare(c_void_p, "llama_model_get_vocab", c_void_p)
        self.n_tokens = declare(c_int32, "llama_vocab_n_tokens", c_void_p)
        self.decode = declare(c_int32, "llama_decode", c_void_p, Batch)
        self.synchronize = declare(None, "llama_synchronize", c_void_p)
        self.logits = declare(POINTER(c_float), "llama_get_logits", c_void_p)
        self.memory = declare(c_void_p, "llama_get_memory", c_void_p)
        self.remove = declare(c_bool, "llama_memory_seq_rm", c_void_p, c_int32, c_int32, c_int32)
        self.copy = declare(None, "llama_memory_seq_cp", c_void_p, c_int32, c_int32, c_int32, c_int32)
        self.state_size = declare(c_size_t, "llama_state_seq_get_size", c_void_p, c_int32)
        self.get_state = declare(c_size_t, "llama_state_seq_get_data", c_void_p, c_void_p, c_size_t, c_int32)
        self.set_state = declare(c_size_t, "llama_state_seq_set_data", c_void_p, c_void_p, c_size_t, c_int32)
        self.tensor_name = declare(c_char_p, "ggml_get_name", c_void_p)
        self.tensor_nbytes = declare(c_size_t, "ggml_nbytes", c_void_p)
        self.read_tensor = declare(None, "ggml_backend_tensor_get", c_void_p, c_void_p, c_size_t, c_size_t)

    def _check_layout(self, path: Path) -> None:
        """Raise EngineError if the library's own defaults do not read as they should."""
        expected = ((self.context_params(), CONTEXT_SENTINELS), (self.model_params(), MODEL_SENTINELS))
        for defaults, sentinels in expected:
            for name, value in sentinels.items():
                if getattr(defaults, name) != value:
                    raise EngineError(
                        f"{path} says it is llama.cpp {self.version}, but its {name} reads"
                        f" {getattr(defaults, name)}: it is laid out in another way; {_REMEDY}"
                    )

    def _logged(self, level: int, text: bytes, _user: object) -> None:
        line = text.decode(errors="replace").strip()
        if level == _LOG_ERROR:
            self.first_error = self.first_error or line
        if line.strip("."):
            logger.debug("%s", line)

    def _aborted(self, message: bytes) -> None:
        """End the process with one sentence, where the library would end it with a core dump."""
        logger.critical("llama.cpp gave up on %s (%s); use another engine for it", self.model, message.decode().strip())
        os._exit(_USELESS_TO_RESTART)


class _Declarations:
    """Sets the types of functions of an opened library."""

    def __init__(self, opened: Any) -> None:
        self._opened = opened

    def __call__(self, result: Any, name: str, *arguments: Any) -> Any:
        """Return a function with its types. Raises AttributeError."""
        function = getattr(self._opened, name)
        function.restype, function.argtypes = result, arguments
        return function


_REMEDY = f"install xllamacpp as exobus pins it, or point {VARIABLE} to a libllama of {' or '.join(LAYOUTS)}"


@cache
def library() -> Library:
    """Open the library, once for a process. Raises EngineError with what to install."""
    return Library(library_file())


def library_file() -> Path:
    """Find the library. Raises EngineError if there is none."""
    if named := os.environ.get(VARIABLE):
        path = Path(named).expanduser()
        if not path.is_file():
            raise EngineError(f"{VARIABLE} is {named!r}, which is no file; point it to libllama.so or libllama.dylib")
        return path
    for package, beginning in _PACKAGES:
        if found := _file_of(package, beginning):
            return found
    raise EngineError(f"there is no libllama on this machine; {_REMEDY}")


def _file_of(package: str, beginning: str) -> Path | None:
    """Return the shared library of an installed package, without importing it."""
    try:
        files = distribution(package).files or []
    except PackageNotFoundError:
        return None
    for file in files:
        if file.name.startswith(beginning) and file.suffix in _SUFFIXES:
            return Path(str(file.locate()))
    return None


def _version(opened: Any) -> str:
    """Return the version that the library reports, without a suffix such as `-dev`. Raises AttributeError."""
    function = opened.llama_version
    function.restype = c_char_p
    return str(function().decode()).partition("-")[0]


def _layout(version: str, path: Path) -> Layout:
    layout = LAYOUTS.get(version)
    if layout is None:
        raise EngineError(f"{path} is llama.cpp {version}, which exobus does not know; {_REMEDY}")
    return layout

"""The library is found without an import of its package, and one that exobus does not know is refused by name."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from engines.errors import EngineError
from engines.llamacpp import library as found
from engines.llamacpp.abi import LAYOUTS
from engines.llamacpp.library import VARIABLE, Library, library, library_file
from tests.support.engines import ROOT


@pytest.fixture(autouse=True)
def no_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)


def test_installed_library_reads_its_own_defaults() -> None:
    assert library().context_params().n_batch == 2048
    assert library().version in LAYOUTS


def test_package_of_the_library_is_never_imported() -> None:
    program = (
        "import sys; from engines.llamacpp.library import library; library(); sys.exit('xllamacpp' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, timeout=60)


def test_named_library_takes_precedence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    link = tmp_path / "libllama.so"
    link.symlink_to(library_file())
    monkeypatch.setenv(VARIABLE, str(link))
    assert library_file() == link


def test_missing_named_library_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "/nowhere/libllama.so")
    with pytest.raises(EngineError, match=r"EXOBUS_LIBLLAMA is '/nowhere/libllama.so', which is no file; point it to"):
        library_file()


def test_machine_without_a_library_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(found, "_PACKAGES", (("no-such-package", "libllama"),))
    with pytest.raises(EngineError, match=r"no libllama on this machine; install xllamacpp .* point EXOBUS_LIBLLAMA"):
        library_file()


def test_file_that_is_no_library_is_refused(tmp_path: Path) -> None:
    (tmp_path / "libllama.so").write_text("not a library")
    with pytest.raises(EngineError, match=r"libllama.so cannot be used as libllama \(.*\); install xllamacpp"):
        Library(tmp_path / "libllama.so")


def test_library_without_the_functions_is_refused() -> None:
    import _ctypes

    with pytest.raises(EngineError, match=r"cannot be used as libllama \(.*llama_version"):
        Library(Path(_ctypes.__file__))


def test_unknown_version_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(found, "LAYOUTS", {"0.1.0": LAYOUTS["0.5.0"]})
    with pytest.raises(EngineError, match=r"is llama.cpp \d+\.\d+\.\d+, which exobus does not know; install xllamacpp"):
        Library(library_file())


def test_wrong_layout_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    version = library().version
    (other,) = LAYOUTS.keys() - {version}
    monkeypatch.setattr(found, "LAYOUTS", {version: LAYOUTS[other]})
    with pytest.raises(EngineError, match=r"but its \w+ reads \w+: it is laid out in another way"):
        Library(library_file())

"""Rules for the source tree: imports run one way, pure modules stay pure, and nothing unsafe is called.

`MAY_IMPORT` states the arrows of docs/design.md: `cli -> actors, gateway -> ring -> bus, engines`, and below them
`models`, `discovery`, `cluster` and `common`.
"""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

VALUES = {"cluster", "common"}
MAY_IMPORT = {
    "common": set(),
    "cluster": {"common"},
    "models": VALUES,
    "discovery": VALUES,
    "bus": VALUES,
    "engines": VALUES | {"models"},
    "ring": VALUES | {"models", "bus", "engines"},
    "actors": VALUES | {"models", "bus", "engines", "discovery", "ring"},
    "gateway": VALUES | {"models", "bus"},  # never `actors`, nor `actors` the gateway
    "cli": VALUES | {"models", "bus", "engines", "discovery", "actors", "gateway"},
}
NO_SOCKETS = ("common", "cluster", "models", "engines")
PURE_RING_MODULES = ("admission", "batching", "prefix_cache", "prompt_lookup", "ring_memory", "sessions")
"""Modules of `ring` that decide and do no I/O: they import neither a socket library, nor the bus, nor an engine."""

SOCKET_LIBRARIES = {"zmq", "socket"}
SOCKET_FACTORY = ROOT / "bus" / "net" / "sockets.py"
MAX_FILES = 20  # of one folder, without `__init__.py`
UNSAFE_MODULES = {"pickle", "marshal", "shelve", "dill"}
UNSAFE_CALLS = {"eval", "exec", "compile", "__import__"}
UNSAFE_METHODS = {"send_pyobj", "recv_pyobj"}
UNSAFE_OPTIONS = {"trust_remote_code", "allow_pickle"}

FILES = sorted(file for package in MAY_IMPORT for file in (ROOT / package).rglob("*.py"))
FOLDERS = sorted({file.parent for file in FILES})


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


every_file = pytest.mark.parametrize("file", FILES, ids=name_of)
every_folder = pytest.mark.parametrize("folder", FOLDERS, ids=name_of)


def package_of(file: Path) -> str:
    return file.relative_to(ROOT).parts[0]


def imports_of(file: Path) -> set[str]:
    """Return the full names of the modules that a file imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file} has a relative import"
            names.add(node.module or "")
    return names


def roots_of(file: Path) -> set[str]:
    """Return the top-level names of the modules that a file imports."""
    return {name.partition(".")[0] for name in imports_of(file)}


def calls_of(file: Path) -> Iterator[ast.Call]:
    return (node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Call))


# -- imports


@every_file
def test_imports_run_one_way(file: Path) -> None:
    package = package_of(file)
    assert roots_of(file) & MAY_IMPORT.keys() <= MAY_IMPORT[package] | {package}


def test_no_modules_import_each_other() -> None:
    modules = {".".join(file.relative_to(ROOT).with_suffix("").parts): file for file in FILES}
    TopologicalSorter({name: imports_of(file) & modules.keys() for name, file in modules.items()}).prepare()


@every_file
def test_pure_packages_import_no_socket_library(file: Path) -> None:
    if package_of(file) in NO_SOCKETS:
        assert not roots_of(file) & SOCKET_LIBRARIES


@pytest.mark.parametrize("module", PURE_RING_MODULES)
def test_pure_ring_modules_do_no_io(module: str) -> None:
    assert not roots_of(ROOT / "ring" / f"{module}.py") & {"bus", "engines", "numpy", *SOCKET_LIBRARIES}


def test_connection_table_imports_no_sockets() -> None:
    assert not roots_of(ROOT / "bus" / "dataplane" / "connections.py") & {"bus", "asyncio", *SOCKET_LIBRARIES}


@every_file
def test_only_the_factory_makes_zeromq_sockets(file: Path) -> None:
    if file != SOCKET_FACTORY and "zmq" in roots_of(file):
        made = [call for call in calls_of(file) if isinstance(call.func, ast.Attribute) and call.func.attr == "socket"]
        assert not made, ast.unparse(made[0])


# -- size and packaging


@every_folder
def test_folder_has_about_twenty_files(folder: Path) -> None:
    assert len([file for file in FILES if file.parent == folder and file.name != "__init__.py"]) <= MAX_FILES


def test_every_package_is_installed_and_type_checked() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]
    assert set(settings["setuptools"]["packages"]["find"]["include"]) == {f"{package}*" for package in MAY_IMPORT}
    assert set(settings["mypy"]["packages"]) == {*MAY_IMPORT, "tests"}


@every_folder
def test_every_folder_is_a_package(folder: Path) -> None:
    assert (folder / "__init__.py").exists()  # setuptools finds no other


# -- safety


@every_file
def test_nothing_is_unpickled_or_evaluated(file: Path) -> None:
    assert not roots_of(file) & UNSAFE_MODULES
    for call in calls_of(file):
        if isinstance(call.func, ast.Name):
            assert call.func.id not in UNSAFE_CALLS, ast.unparse(call)
        if isinstance(call.func, ast.Attribute):
            assert call.func.attr not in UNSAFE_METHODS, ast.unparse(call)
        assert not {keyword.arg for keyword in call.keywords} & UNSAFE_OPTIONS, ast.unparse(call)


@every_file
def test_no_broad_exception_is_passed_over(file: Path) -> None:
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ExceptHandler) and (node.type is None or "Exception" in ast.unparse(node.type)):
            assert not all(isinstance(statement, ast.Pass) for statement in node.body), f"line {node.lineno}"


@every_file
def test_every_module_has_a_docstring(file: Path) -> None:
    assert ast.get_docstring(ast.parse(file.read_text()))


@pytest.mark.parametrize(
    "module", ["actors.node_actor", "actors.topology_actor", "actors.download_actor", "bus.hub", "cli.node.process"]
)
def test_idle_processes_load_no_array_library(module: str) -> None:
    program = f"import sys, {module}; print({{'numpy', 'gguf', 'tokenizers'}} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", program], cwd=ROOT, text=True) == "set()\n"

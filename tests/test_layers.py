"""Imports run one way, sockets come from one factory, and nothing is unpickled or evaluated."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MAY_IMPORT = {
    "common": set(),
    "cluster": {"common"},
    "models": {"cluster", "common"},
    "engines": {"cluster", "common", "models"},
    "discovery": {"cluster", "common"},
    "bus": {"cluster", "common"},
    "ring": {"bus", "cluster", "common", "engines", "models"},
    "actors": {"bus", "cluster", "common", "discovery", "engines", "models", "ring"},
    "gateway": {"bus", "cluster", "common", "models"},
    "cli": {"actors", "bus", "cluster", "common", "discovery", "engines", "gateway", "models"},
}
PACKAGES = tuple(MAY_IMPORT)
WITHOUT_SOCKETS = ("common", "cluster", "models", "engines")
PURE_RING_MODULES = ("admission", "batching", "prefix_cache", "prompt_lookup", "ring_memory", "sessions")
MOST_FILES = 20  # of one folder, without `__init__.py`
FILES = sorted(file for package in PACKAGES for file in (ROOT / package).rglob("*.py"))

every_file = pytest.mark.parametrize("file", FILES, ids=[str(file.relative_to(ROOT)) for file in FILES])


def imported(file: Path) -> Iterator[str]:
    """The full names of the modules that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file} imports relatively"
            yield node.module or ""


def module_name(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts)


def calls(file: Path) -> Iterator[ast.Call]:
    return (node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Call))


@every_file
def test_imports_run_one_way(file: Path) -> None:
    package = file.relative_to(ROOT).parts[0]
    ours = {name.partition(".")[0] for name in imported(file)} & set(PACKAGES) - {package}
    assert ours <= MAY_IMPORT[package]


def test_no_modules_import_each_other_in_a_circle() -> None:
    ours = {module_name(file): file for file in FILES}
    TopologicalSorter({name: set(imported(file)) & ours.keys() for name, file in ours.items()}).prepare()


@every_file
def test_pure_packages_import_no_zeromq(file: Path) -> None:
    if file.relative_to(ROOT).parts[0] in WITHOUT_SOCKETS:
        assert not [name for name in imported(file) if name.partition(".")[0] == "zmq"]


@pytest.mark.parametrize("module", PURE_RING_MODULES)
def test_pure_ring_modules_import_no_bus(module: str) -> None:
    names = {name.partition(".")[0] for name in imported(ROOT / "ring" / f"{module}.py")}
    assert not names & {"bus", "engines", "numpy", "zmq"}


def test_connection_table_imports_no_sockets() -> None:
    names = set(imported(ROOT / "bus" / "dataplane" / "connections.py"))
    assert not [name for name in names if name.partition(".")[0] in ("bus", "zmq", "asyncio")]


@pytest.mark.parametrize("folder", sorted({file.parent for file in FILES}), ids=str)
def test_folder_has_about_twenty_files_at_most(folder: Path) -> None:
    assert len([file for file in FILES if file.parent == folder and file.name != "__init__.py"]) <= MOST_FILES


@every_file
def test_zeromq_sockets_come_from_one_factory(file: Path) -> None:
    made = [
        ast.unparse(call)
        for call in calls(file)
        if isinstance(call.func, ast.Attribute) and call.func.attr == "socket" and "zmq" in "".join(imported(file))
    ]
    assert not made or file == ROOT / "bus" / "net" / "sockets.py"


@every_file
def test_nothing_is_unpickled_evaluated_or_trusted(file: Path) -> None:
    assert not {name.partition(".")[0] for name in imported(file)} & {"pickle", "marshal", "shelve", "dill"}
    for call in calls(file):
        name = call.func.id if isinstance(call.func, ast.Name) else ""
        assert name not in ("eval", "exec", "compile", "__import__"), ast.unparse(call)
        assert not any(keyword.arg in ("trust_remote_code", "allow_pickle") for keyword in call.keywords)
        if isinstance(call.func, ast.Attribute):
            assert call.func.attr not in ("send_pyobj", "recv_pyobj"), ast.unparse(call)


@every_file
def test_no_failure_is_passed_over_in_silence(file: Path) -> None:
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ExceptHandler) and (node.type is None or "Exception" in ast.unparse(node.type)):
            assert not all(isinstance(statement, ast.Pass) for statement in node.body), f"line {node.lineno}"


@every_file
def test_a_module_says_what_it_is(file: Path) -> None:
    assert ast.get_docstring(ast.parse(file.read_text()))

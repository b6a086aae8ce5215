"""A join code is in one private file, and nowhere else where a running node leaves traces."""

from __future__ import annotations

import stat
from pathlib import Path

import psutil

from common.config import NodeConfig
from tests.support.nodes import CODE, NodeProcess, nodes

NUMPY = ["--engine", "numpy"]
SECRET = "".join(CODE.text().partition("-")[2].split("-"))


def reveals(text: str) -> bool:
    """Return whether a text contains enough of the code to guess the rest."""
    letters = "".join(text.replace("-", "").split())
    return any(SECRET[at : at + 16] in letters for at in range(0, len(SECRET) - 16, 8))


def files_that_reveal_it(*folders: Path) -> list[str]:
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    assert len(files) > 5, "a node leaves files, and none are here"
    return [path.name for path in files if reveals(path.read_text(errors="replace"))]


def environments(node: NodeProcess) -> list[dict[str, str]]:
    children = node.children()
    assert len(children) > 5
    return [child.environ() for child in children]


def test_code_from_environment_is_in_one_private_file() -> None:
    with nodes("ada", arguments=NUMPY, environment={"EXOBUS_LOG": "DEBUG"}) as (ada,):
        config: NodeConfig = ada.config
        assert files_that_reveal_it(ada.data_dir, config.run_path) == ["join-code"]
        assert stat.S_IMODE((ada.data_dir / "join-code").stat().st_mode) == 0o600
        assert not any(reveals(value) for environment in environments(ada) for value in environment.values())
        assert not any(
            reveals(" ".join(child.cmdline())) for child in (psutil.Process(ada.process.pid), *ada.children())
        )
    assert not reveals("\n".join(ada.output))


def test_code_on_command_line_gives_a_warning(tmp_path: Path) -> None:
    settings = ["--name", "ada", "--discovery-port", "0", *NUMPY]
    ports = ["--api-port", "0", "--bus-port", "0", "--join-port", "0"]
    first = NodeProcess(tmp_path / "ada", [*settings, *ports, "--join", CODE.text()], {})
    try:
        first.line(lambda line: "can see a join code on the command line" in line)
        first.ready()
    finally:
        first.stop()
    again = NodeProcess(tmp_path / "ada", [*settings, *ports], {})
    try:
        again.line(lambda line: "test, as a member" in line)
    finally:
        again.stop()
    assert not reveals("\n".join((*first.output, *again.output)))

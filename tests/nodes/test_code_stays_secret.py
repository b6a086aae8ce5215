"""Where a join code may be seen: in one file of its user, and nowhere else that a running node leaves a trace."""

from __future__ import annotations

import stat
from pathlib import Path

import psutil

from common.config import NodeConfig
from tests.support.nodes import CODE, NodeProcess, nodes

NUMPY = ["--engine", "numpy"]
SECRET = "".join(CODE.text().partition("-")[2].split("-"))


def shows(text: str) -> bool:
    """Whether enough of the code is in a text to guess the rest."""
    letters = "".join(text.replace("-", "").split())
    return any(SECRET[at : at + 16] in letters for at in range(0, len(SECRET) - 16, 8))


def files_that_show_it(*folders: Path) -> list[str]:
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    assert len(files) > 5, "a node leaves a trace; where is it?"
    return [path.name for path in files if shows(path.read_text(errors="replace"))]


def environments(node: NodeProcess) -> list[dict[str, str]]:
    children = node.children()
    assert len(children) > 5
    return [child.environ() for child in children]


def test_a_code_from_the_environment_lies_in_one_private_file_and_no_child_has_it() -> None:
    with nodes("ada", arguments=NUMPY, environment={"EXOBUS_LOG": "DEBUG"}) as (ada,):
        config: NodeConfig = ada.config
        assert files_that_show_it(ada.data_dir, config.run_path) == ["join-code"]
        assert stat.S_IMODE((ada.data_dir / "join-code").stat().st_mode) == 0o600
        assert not any(shows(value) for environment in environments(ada) for value in environment.values())
        assert not any(shows(" ".join(child.cmdline())) for child in (psutil.Process(ada.process.pid), *ada.children()))
    assert not shows("\n".join(ada.output))


def test_a_code_on_the_command_line_is_warned_of_and_needed_once(tmp_path: Path) -> None:
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
    assert not shows("\n".join((*first.output, *again.output)))

"""The root of the command line: help, version, wrong names and exit statuses."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli.main import app
from cli.options import OTHER_NAMES
from tests.support.commands import exobus
from tests.support.gateway.gateway_rig import MODEL, ROOT

NOWHERE = "http://127.0.0.1:9"
COMMANDS = ("node", "run", "models", "key", "topology", "cluster", "bus")
HEAVY = ("zmq", "numpy", "httpx", "msgspec", "asyncio", "rich", "starlette", "tokenizers")


def output(*arguments: str, status: int = 0) -> str:
    """Run the command in this process, on 80 columns; return what it prints before it ends with this status."""
    result = CliRunner().invoke(app, arguments, env={"COLUMNS": "80"})
    assert result.exit_code == status, result.output
    return result.output


@pytest.mark.parametrize("option", ["--help", "-h"])
def test_help_names_every_command(option: str) -> None:
    text = output(option)
    assert all(re.search(rf"\n  {name} ", text) for name in COMMANDS)


@pytest.mark.parametrize("group", [(), ("models",), ("cluster",), ("bus",)])
def test_summaries_of_commands_are_whole_on_80_columns(group: tuple[str, ...]) -> None:
    assert "..." not in output(*group, "-h").partition("Commands:")[2]


@pytest.mark.parametrize("command", [["node"], ["run"], ["models", "ls"], ["cluster", "revoke"], ["bus", "sub"]])
def test_every_level_of_help_is_short_option_h(command: list[str]) -> None:
    assert output(*command, "-h").startswith("Usage: ")


def test_help_imports_nothing_heavy() -> None:
    program = "import sys, cli.main; print(' '.join(name for name in sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not set(HEAVY) & set(loaded.stdout.split())


def test_version_is_one_line() -> None:
    assert re.fullmatch(r"exobus \S+\n", exobus("--version").stdout)


@pytest.mark.parametrize(
    "arguments", [["run"], ["run", "m", "p", "--temperature", "3"], ["nothing"], ["bus", "nothing"]]
)
def test_wrong_use_ends_with_status_2(arguments: list[str]) -> None:
    result = exobus(*arguments)
    assert (result.returncode, result.stdout) == (2, "")


@pytest.mark.parametrize("name", sorted(OTHER_NAMES))
def test_name_of_another_program_is_answered_with_ours(name: str) -> None:
    assert f"No such command '{name}'; try `{OTHER_NAMES[name]}`." in output(name, status=2)


@pytest.mark.parametrize("group", ["models", "cluster", "bus"])
def test_list_is_answered_with_ls_in_each_group(group: str) -> None:
    assert re.search(rf"No such command 'list'; try `.* {group} ls`\.", output(group, "list", status=2))


def test_every_suggested_command_exists() -> None:
    for suggestion in OTHER_NAMES.values():
        _, *words = suggestion.replace("MODEL", "").split()
        assert output(*words, *(["--help"] if words[-1] not in ("--help", "--version") else []))


@pytest.mark.parametrize("command", [["run", MODEL, "hi"], ["models", "ls"], ["topology"]])
def test_unreachable_node_ends_with_status_3(command: list[str]) -> None:
    result = exobus(*command, "--api", NOWHERE)
    assert (result.returncode, result.stdout) == (3, "")
    assert "`exobus node`" in result.stderr


@pytest.mark.parametrize("url", ["http://127.0.0.1:notaport", "ftp://", "127.0.0.1:notaport", "http://", "a b"])
def test_invalid_url_ends_with_status_3(url: str) -> None:
    result = exobus("models", "ls", "--api", url)
    assert result.returncode == 3
    assert len(result.stderr.strip().splitlines()) == 1


def test_module_ignores_the_current_folder(tmp_path: Path) -> None:
    (tmp_path / "common").mkdir()
    (tmp_path / "common" / "__init__.py").write_text("raise SystemExit('imported from the current folder')")
    result = subprocess.run(
        [sys.executable, "-m", "cli", "--version"], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert (result.returncode, result.stderr) == (0, "")

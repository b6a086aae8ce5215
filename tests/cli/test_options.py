"""What the commands share."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import typer

from cli.options import leave, typed_command


@pytest.mark.parametrize(
    ("on_path", "started_as", "typed"),
    [
        (True, "/opt/bin/exobus", "exobus"),
        (False, "{here}/.venv/bin/exobus", ".venv/bin/exobus"),
        (False, "{here}/exobus", "./exobus"),
        (False, "/opt/my tools/exobus", "'/opt/my tools/exobus'"),
        (False, "/opt/cli/__main__.py", f"{sys.executable} -m cli"),
    ],
)
def test_command_is_shown_as_it_can_be_typed(
    on_path: bool, started_as: str, typed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "bin"
    folder.mkdir()
    if on_path:
        (folder / "exobus").touch(mode=0o755)
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [started_as.format(here=tmp_path)])
    assert typed_command() == typed


def test_foreign_sentence_does_not_control_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit):
        leave("no\x1b[2J", 1)
    assert capsys.readouterr().err == "exobus: no�[2J\n"

"""A model is added or removed under a name that a catalogue can hold, or nothing is written."""

from __future__ import annotations

import pytest
import typer

from cli.models.adding import add_model, remove_model
from cli.options import USAGE

NO_NODE = "none is running"


@pytest.mark.parametrize(
    ("text", "model_id", "sentence"),
    [
        ("", "", "the name of a model has 1 to 256 printable characters"),
        ("smollm2-135m", "My Own", "My Own is no id; give lower-case letters, digits, dots and dashes"),
        ("tests", "My Own", "My Own is no id"),
    ],
)
def test_unusable_name_is_refused_without_a_node(
    capsys: pytest.CaptureFixture[str], text: str, model_id: str, sentence: str
) -> None:
    with pytest.raises(typer.Exit) as caught:
        add_model(text, model_id, NO_NODE)
    assert caught.value.exit_code == USAGE
    assert capsys.readouterr().err.startswith(f"exobus: {sentence}")


def test_empty_name_is_not_removed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit):
        remove_model(" ", NO_NODE)
    assert "the name of a model has 1 to 256 printable characters" in capsys.readouterr().err

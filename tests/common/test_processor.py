"""The name of the processor."""

from __future__ import annotations

from pathlib import Path

import pytest

from common import processor
from common.processor import processor_name


@pytest.mark.parametrize(
    ("cpuinfo", "name"),
    [
        ("processor\t: 0\nmodel name\t: AMD EPYC\n", "AMD EPYC"),
        ("processor\t: 0\nHardware\t: BCM2835\nModel\t: Raspberry Pi 4\n", "BCM2835"),
        ("processor\t: 0\nModel\t: Raspberry Pi 5\n", "Raspberry Pi 5"),
    ],
)
def test_name_is_read_from_cpuinfo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cpuinfo: str, name: str) -> None:
    (tmp_path / "cpuinfo").write_text(cpuinfo)
    monkeypatch.setattr(processor, "CPUINFO", tmp_path / "cpuinfo")
    assert processor_name() == name


def test_name_is_known_without_cpuinfo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processor, "CPUINFO", tmp_path / "none")
    assert processor_name()

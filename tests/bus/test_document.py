"""protocol.md: its tables are those of the classes, and its examples are valid."""

from __future__ import annotations

import asyncio
import re
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bus import document
from bus.dataplane import frames
from bus.dataplane.frames import Flag, unpack
from bus.document import BEGIN, DOCUMENT, END, STALE, generated, main, merged
from bus.messages import MESSAGES, SessionToken, Status
from bus.wire import decode
from tests.support.bus import ROOT, RunningHub, client, in_time, running_hub

TEXT = DOCUMENT.read_text()
SIZES = {"2s": 2, "u8": 1, "u16": 2, "u32": 4, "u64": 8}


def hex_blocks() -> list[bytes]:
    """Return the code blocks of the prose that hold hexadecimal digits only."""
    return [block.encode() for block in re.findall(r"```\n([0-9a-f\s|]+)\n```", TEXT.partition(BEGIN)[0])]


def test_tables_are_up_to_date() -> None:
    assert merged(TEXT) == TEXT, STALE


def test_every_kind_has_a_table() -> None:
    assert set(re.findall(r"^### `(.+)`$", generated(), re.MULTILINE)) == MESSAGES.keys()


def test_every_referenced_value_has_a_table() -> None:
    assert set(re.findall(r"\]\(#(\w+)\)", generated())) <= {
        title.lower().replace(".", "") for title in re.findall(r"^### `?([\w.]+)`?$", generated(), re.MULTILINE)
    }


def test_prose_names_existing_kinds_only() -> None:
    prose = TEXT.partition(BEGIN)[0]
    named = set(re.findall(r"`([a-z]+\.[a-z]+)`", prose)) - {"protocol.md"}
    assert named
    assert named <= MESSAGES.keys()
    assert len(prose.splitlines()) <= 240


def test_example_message_decodes() -> None:
    topic, *lines = hex_blocks()[0].split()
    header, body = b"".join(lines[:2]), lines[2]
    envelope = decode([bytes.fromhex(part.decode()) for part in (topic, header, body)])
    assert envelope.message == Status("smollm2-135m", "placing on 2 nodes")
    for value in (str(envelope.to), envelope.header.id, envelope.header.sender, str(envelope.header.time)):
        assert value in TEXT


def test_example_client_prints_name_and_tokens() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)

    async def publish_token(hub: RunningHub) -> None:
        async with client(hub.run_dir, hub.node_id, "gateway") as gateway:
            assert in_time(lambda: gateway.has_subscribers(SessionToken))
            await gateway.publish(SessionToken("session", 0, 7, "a token\n"))

    with running_hub("a" * 16) as hub:
        command = [sys.executable, "-c", code, str(hub.run_dir)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as example:
            assert example.stdout
            try:
                assert example.stdout.readline() == f"name of {hub.node_id}\n"
                asyncio.run(publish_token(hub))
                assert example.stdout.readline() == "a token\n"
            finally:
                example.kill()


def test_example_data_frame_decodes() -> None:
    read, tokens = unpack(bytes.fromhex(hex_blocks()[1].replace(b"|", b"").decode()))
    assert (read.flags, read.position, read.stage, read.epoch) == (Flag.TOKEN | Flag.FINISHED, 41, 1, 3)
    np.testing.assert_array_equal(tokens, [2])


def test_table_of_data_frame_covers_all_bytes() -> None:
    rows = re.findall(r"^\| (\d+) \| \w+ \| (2s|u\d+) \|", generated(), re.MULTILINE)
    at = 0
    for offset, kind in rows:
        assert int(offset) == at
        at += SIZES[kind]
    assert at == frames.HEADER_BYTES == struct.calcsize(frames._layout.format)


def test_all_flags_and_types_have_rows() -> None:
    for name, bit in vars(Flag).items():
        assert name.startswith("_") or f"| {name} | {bit} |" in generated()
    for code in frames.DTYPES:
        assert re.search(rf"^\| {code} \| [iuf]\d \|", generated(), re.MULTILINE)


def test_stale_document_fails_the_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = tmp_path / "protocol.md"
    copy.write_text(f"by hand\n{BEGIN}\nold\n{END}\nafter\n")
    monkeypatch.setattr(document, "DOCUMENT", copy)
    with pytest.raises(SystemExit, match=re.escape(STALE)):
        main(["--check"])
    main([])
    assert copy.read_text() == f"by hand\n{BEGIN}\n\n{generated()}\n\n{END}\nafter\n"
    with pytest.raises(SystemExit) as passed:
        main(["--check"])
    assert passed.value.code == 0


def test_document_without_marks_is_refused() -> None:
    with pytest.raises(ValueError, match="put them back where the tables belong"):
        merged("only prose")


def test_document_check_runs_as_a_command() -> None:
    checked = subprocess.run(
        [sys.executable, "-m", "bus.document", "--check"], cwd=ROOT, capture_output=True, text=True
    )
    assert (checked.returncode, checked.stderr) == (0, "")

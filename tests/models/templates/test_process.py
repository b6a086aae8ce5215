"""Child processes are started, replaced after they die, and end with their parent."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from models.errors import TemplateError, TemplateUnavailable
from models.templates import process as template_process
from models.templates.renderer import TemplateRenderer
from tests.support.gateway.gateway_rig import eventually
from tests.support.templates import ENDLESS, GOOD, WITHIN_S, busy, children, good, outcome_of, rendering, until

ROOT = Path(__file__).parents[3]


# A child with replies that are not valid.
GARBAGE = """
import os, sys
os.write(1, bytes(4))
while sys.stdin.buffer.read(1):
    os.write(1, bytes.fromhex("{}"))
"""


SILENT = "import os, time; os.write(1, bytes({})); time.sleep(600)"  # 4 bytes mean that it is ready


# A parent that prints its child's process id and renders forever.
PARENT = """
import asyncio
from models.templates.chat_template import ChatTemplate
from models.templates.renderer import TemplateRenderer
async def main():
    renderer = TemplateRenderer(60)
    await renderer.render(ChatTemplate("a", None, None), [])
    print(*renderer.pids, flush=True)
    await renderer.render(ChatTemplate({!r}, None, None), [])
    await asyncio.sleep(60)
asyncio.run(main())
"""


def test_child_killed_while_idle_is_replaced() -> None:
    async def main() -> None:
        async with rendering() as renderer:
            await good(renderer)
            (pid,) = renderer.pids
            os.kill(pid, signal.SIGKILL)
            await good(renderer)
            assert renderer.pids
            assert pid not in renderer.pids

    asyncio.run(main())


def test_render_is_retried_once_if_its_child_dies() -> None:
    async def main() -> None:
        async with rendering() as renderer:
            bomb = asyncio.create_task(renderer.render(ENDLESS, []))
            first = await busy(renderer)
            os.kill(first, signal.SIGKILL)
            second = await busy(renderer, first)
            assert not bomb.done()
            os.kill(second, signal.SIGKILL)
            assert "broke the process that renders it" in await outcome_of(bomb)
            await good(renderer)

    asyncio.run(main())


def test_cancelled_render_ends_its_child() -> None:
    async def main() -> None:
        async with rendering() as renderer:
            bomb = asyncio.create_task(renderer.render(ENDLESS, []))
            pid = await busy(renderer)
            bomb.cancel()
            with pytest.raises(asyncio.CancelledError):
                await bomb
            await good(renderer)
            assert pid not in renderer.pids
            await until(lambda: pid not in {child.pid for child in children()})

    asyncio.run(main())


@pytest.mark.parametrize("reply", ["00000001c1", "00000003a3c3a9", "ffffffff00", "0000000492a5416e6f"])
def test_invalid_reply_replaces_the_child(reply: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with rendering() as renderer:
            with monkeypatch.context() as patch:
                patch.setattr(template_process, "_COMMAND", (sys.executable, "-c", GARBAGE.format(reply)))
                renderer.start()
                await until(lambda: renderer.pids)
                before = renderer.pids
                with pytest.raises(TemplateError, match="the process that renders it"):
                    await renderer.render(GOOD, [{"content": "hello"}])
            await good(renderer)
            assert len(renderer.pids) == 1
            assert renderer.pids != before

    asyncio.run(main())


def test_silent_child_is_stopped_at_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with rendering(0.1) as renderer:
            with monkeypatch.context() as patch:
                patch.setattr(template_process, "_COMMAND", (sys.executable, "-c", SILENT.format(4)))
                with pytest.raises(TemplateError, match=r"took longer than 0\.1 s"):
                    await renderer.render(GOOD, [])
            await until(lambda: renderer.pids)

    asyncio.run(main())


@pytest.mark.parametrize("script", ["import nothing_of_that_name", SILENT.format(0)])
def test_failed_start_is_reported_and_retried(script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with rendering() as renderer:
            with monkeypatch.context() as patch:
                patch.setattr(template_process, "_COMMAND", (sys.executable, "-c", script))
                patch.setattr(template_process, "START_TIMEOUT_S", 0.5)
                renderer.start()
                for _ in range(2):
                    with pytest.raises(TemplateUnavailable, match="did not start"):
                        await renderer.render(GOOD, [])
            await good(renderer)

    asyncio.run(main())


def test_missing_python_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with rendering() as renderer:
            with pytest.raises(TemplateUnavailable, match="did not start"):
                await renderer.render(GOOD, [])

    monkeypatch.setattr(template_process, "_COMMAND", ("/nothing/of/that/name",))
    asyncio.run(main())


def test_closed_renderer_starts_no_process() -> None:
    async def main() -> None:
        async with rendering() as renderer:
            await good(renderer)
            await renderer.close()
            assert children() == []
            with pytest.raises(TemplateUnavailable, match="stopping"):
                await renderer.render(GOOD, [])

    asyncio.run(main())


@pytest.mark.parametrize("turns", [0, 1, 100])
def test_renderer_closes_while_its_child_starts(turns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with rendering() as renderer:
            renderer.start()
            for _ in range(turns):
                await asyncio.sleep(0)

    monkeypatch.setattr(template_process, "_COMMAND", (sys.executable, "-c", SILENT.format(0)))
    monkeypatch.setattr(template_process, "START_TIMEOUT_S", 10 * WITHIN_S)
    asyncio.run(main())


def test_renderer_closes_while_its_child_works() -> None:
    async def main() -> None:
        async with rendering() as renderer:
            bomb = asyncio.create_task(renderer.render(ENDLESS, []))
            await busy(renderer)
            await renderer.close()
            with pytest.raises(TemplateUnavailable, match="stopping"):
                await bomb

    asyncio.run(main())


def test_child_started_ahead_serves_the_first_render() -> None:
    async def main() -> None:
        async with rendering() as renderer:
            renderer.start()
            await until(lambda: renderer.pids)
            begun = renderer.pids
            await good(renderer)
            assert renderer.pids == begun

    asyncio.run(main())


def test_new_renderer_starts_no_process() -> None:
    assert TemplateRenderer().pids == []
    assert children() == []


@pytest.mark.parametrize("endless", [False, True])
def test_children_end_with_their_parent(endless: bool) -> None:
    command = [sys.executable, "-c", PARENT.format(ENDLESS.source if endless else "")]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        assert eventually(lambda: not endless or child.cpu_times().user > 0.2)
        parent.kill()
    assert eventually(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE, WITHIN_S)

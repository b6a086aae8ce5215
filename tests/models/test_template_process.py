"""How the processes that render are started, die, are replaced, and end with the one that asks them."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from models import template_process
from models.errors import TemplateError, TemplateUnavailable
from models.template_renderer import TemplateRenderer
from tests.support.ring import eventually
from tests.support.templates import ENDLESS, GOOD, WITHIN_S, busy, children, good, outcome_of, rendering, until

ROOT = Path(__file__).parent.parent.parent

# A child that answers with what it was not asked for.
GARBAGE = """
import os, sys
os.write(1, bytes(4))
while sys.stdin.buffer.read(1):
    os.write(1, bytes.fromhex("{}"))
"""
SILENT = "import os, time; os.write(1, bytes({})); time.sleep(600)"  # with 4 bytes it says that it is ready
# An asker that tells its child's process id and goes on rendering for ever.
ASKER = """
import asyncio
from models.chat_template import ChatTemplate
from models.template_renderer import TemplateRenderer
async def main():
    renderer = TemplateRenderer(60)
    await renderer.render(ChatTemplate("a", None, None), [])
    print(*renderer.pids, flush=True)
    await renderer.render(ChatTemplate({!r}, None, None), [])
    await asyncio.sleep(60)
asyncio.run(main())
"""


def test_a_child_that_was_killed_while_idle_is_replaced_without_a_word() -> None:
    async def main() -> None:
        async with rendering() as renderer:
            await good(renderer)
            (pid,) = renderer.pids
            os.kill(pid, signal.SIGKILL)
            await good(renderer)
            assert renderer.pids
            assert pid not in renderer.pids

    asyncio.run(main())


def test_a_render_whose_child_is_killed_is_tried_once_more_and_then_given_up() -> None:
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


def test_a_client_that_leaves_takes_the_work_with_it() -> None:
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


@pytest.mark.parametrize("answer", ["00000001c1", "00000003a3c3a9", "ffffffff00", "0000000492a5416e6f"])
def test_an_answer_that_is_none_ends_the_child_that_gave_it(answer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with rendering() as renderer:
            with monkeypatch.context() as patch:
                patch.setattr(template_process, "_COMMAND", (sys.executable, "-c", GARBAGE.format(answer)))
                renderer.begin()
                await until(lambda: renderer.pids)
                before = renderer.pids
                with pytest.raises(TemplateError, match="the process that renders it"):
                    await renderer.render(GOOD, [{"content": "hello"}])
            await good(renderer)
            assert len(renderer.pids) == 1
            assert renderer.pids != before

    asyncio.run(main())


def test_a_child_that_says_nothing_is_ended_by_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with rendering(0.1) as renderer:
            with monkeypatch.context() as patch:
                patch.setattr(template_process, "_COMMAND", (sys.executable, "-c", SILENT.format(4)))
                with pytest.raises(TemplateError, match=r"took longer than 0\.1 s"):
                    await renderer.render(GOOD, [])
            await until(lambda: renderer.pids)

    asyncio.run(main())


@pytest.mark.parametrize("script", ["import nothing_of_that_name", SILENT.format(0)])
def test_a_child_that_does_not_start_is_said_so_and_tried_again(script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with rendering() as renderer:
            with monkeypatch.context() as patch:
                patch.setattr(template_process, "_COMMAND", (sys.executable, "-c", script))
                patch.setattr(template_process, "START_WITHIN_S", 0.5)
                renderer.begin()
                for _ in range(2):
                    with pytest.raises(TemplateUnavailable, match="did not start"):
                        await renderer.render(GOOD, [])
            await good(renderer)

    asyncio.run(main())


def test_a_python_that_is_not_there_is_said_so(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with rendering() as renderer:
            with pytest.raises(TemplateUnavailable, match="did not start"):
                await renderer.render(GOOD, [])

    monkeypatch.setattr(template_process, "_COMMAND", ("/nothing/of/that/name",))
    asyncio.run(main())


def test_a_closed_renderer_has_no_process_and_starts_none() -> None:
    async def main() -> None:
        async with rendering() as renderer:
            await good(renderer)
            await renderer.close()
            assert children() == []
            with pytest.raises(TemplateUnavailable, match="stopping"):
                await renderer.render(GOOD, [])

    asyncio.run(main())


@pytest.mark.parametrize("turns", [0, 1, 100])
def test_a_renderer_can_be_closed_while_its_child_starts(turns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with rendering() as renderer:
            renderer.begin()
            for _ in range(turns):
                await asyncio.sleep(0)

    monkeypatch.setattr(template_process, "_COMMAND", (sys.executable, "-c", SILENT.format(0)))
    monkeypatch.setattr(template_process, "START_WITHIN_S", 10 * WITHIN_S)
    asyncio.run(main())


def test_a_renderer_can_be_closed_while_its_child_works() -> None:
    async def main() -> None:
        async with rendering() as renderer:
            bomb = asyncio.create_task(renderer.render(ENDLESS, []))
            await busy(renderer)
            await renderer.close()
            with pytest.raises(TemplateUnavailable, match="stopping"):
                await bomb

    asyncio.run(main())


def test_the_first_child_is_started_ahead_and_then_used() -> None:
    async def main() -> None:
        async with rendering() as renderer:
            renderer.begin()
            await until(lambda: renderer.pids)
            begun = renderer.pids
            await good(renderer)
            assert renderer.pids == begun

    asyncio.run(main())


def test_making_a_renderer_starts_nothing() -> None:
    assert TemplateRenderer().pids == []
    assert children() == []


@pytest.mark.parametrize("endless", [False, True])
def test_children_die_with_the_process_that_asks_them(endless: bool) -> None:
    command = [sys.executable, "-c", ASKER.format(ENDLESS.source if endless else "")]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as asker:
        assert asker.stdout is not None
        child = psutil.Process(int(asker.stdout.readline()))
        assert eventually(lambda: not endless or child.cpu_times().user > 0.2)
        asker.kill()
    assert eventually(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE, WITHIN_S)

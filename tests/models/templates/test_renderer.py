"""Child processes render the same text, and no template harms more than its own request."""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.errors import TemplateError, TemplateUnavailable
from models.templates import process as template_process
from models.templates import renderer as template_renderer
from models.templates.chat_template import ChatTemplate, new_environment
from models.templates.renderer import CHILDREN, TemplateRenderer
from tests.support.models import CHAT_TEMPLATE, default_model_path
from tests.support.templates import (
    ATTACKS,
    CONVERSATIONS,
    ENDLESS,
    GOOD,
    MEMORY_BOMBS,
    REFUSED_BOMBS,
    RICH,
    TIME_BOMBS,
    TOOLS,
    busy,
    good,
    outcome,
    outcome_of,
    rendering,
    template_of,
    watched,
)

SHORT_S = 0.5
ADDRESS = re.compile("0x[0-9a-f]+")


# Its first message is the time that it takes, in ranges of 99999.
EITHER = ChatTemplate(
    "{% for a in range(messages[0].content|int) %}{% for b in range(99999) %}{% endfor %}{% endfor %}.", None, None
)


# A child with templates outside of a sandbox.
UNSANDBOXED = """
from models.templates import chat_template, child
from tests.support.templates import unsandboxed
chat_template.new_environment = unsandboxed
child.main()
"""


def named(bombs: dict[str, str]) -> pytest.MarkDecorator:
    """Parametrize a test with each bomb."""
    return pytest.mark.parametrize("source", bombs.values(), ids=list(bombs))


def test_child_renders_the_same_text_as_this_process() -> None:
    sources = [template_of(default_model_path().parent), RICH, CHAT_TEMPLATE, "{{ raise_exception('no é') }}", "{{ "]
    templates = [ChatTemplate(source, "<|im_start|>", None) for source in sources]
    requests: list[tuple[ChatTemplate, list[dict[str, Any]], bool, dict[str, Any]]] = [
        (template, messages, prompt, variables)
        for template in templates
        for messages in CONVERSATIONS
        for prompt in (True, False)
        for variables in ({}, {"tools": TOOLS, "style": "x"})
    ]

    async def main() -> None:
        async with rendering() as renderer:
            for template, messages, prompt, variables in requests:
                expected = outcome(lambda: template.render(messages, prompt, **variables))  # noqa: B023
                assert await outcome_of(renderer.render(template, messages, prompt, **variables)) == expected

    asyncio.run(main())


def test_filters_and_methods_work_alike_in_a_child() -> None:
    methods = [name for name in dir("") if not name.startswith("_")]
    filters = [name for name in new_environment().filters if name != "random"]
    sources = [f"{{{{ {value}|{name} }}}}" for name in filters for value in ("'a <b> 1'", "[[1]]")]
    sources += [f"{{{{ 'a b 1'.{name}() }}}}" for name in methods]
    sources += ["{{ strftime_now('%A %d %B %Y %H %Z %z %j %U') }}", "{{ 'é'.encode('utf-16')|length }}"]

    async def main() -> None:
        async with rendering() as renderer:
            for source in sources:
                template = ChatTemplate(source, None, None)
                there, here = await outcome_of(renderer.render(template, [])), outcome(lambda: template.render([]))  # noqa: B023
                assert ADDRESS.sub("", there) == ADDRESS.sub("", here), source

    asyncio.run(main())


@pytest.fixture(scope="module")
def both() -> Iterator[Callable[[Sequence[dict[str, str]]], tuple[str, str]]]:
    """Yield a function that renders messages in a child and in this process."""
    template, renderer = ChatTemplate(RICH, "<s>", "</s>"), TemplateRenderer()
    with asyncio.Runner() as runner:
        yield lambda messages: (runner.run(renderer.render(template, messages)), template.render(messages))
        runner.run(renderer.close())


@given(messages=st.lists(st.fixed_dictionaries({"role": st.text(), "content": st.text()})))
def test_any_conversation_renders_alike_in_a_child(
    both: Callable[[Sequence[dict[str, str]]], tuple[str, str]], messages: list[dict[str, str]]
) -> None:
    there, here = both(messages)
    assert there == here


def test_long_conversation_is_returned_whole() -> None:
    async def main() -> None:
        async with rendering() as renderer:
            content = "é🙂" * 1_000_000
            assert await renderer.render(GOOD, [{"content": content}]) == content

    asyncio.run(main())


def test_no_attack_succeeds_through_the_renderer(tmp_path: Path) -> None:
    async def main() -> None:
        async with rendering() as renderer:
            for attack in ATTACKS.values():
                template = ChatTemplate(canary.aim(attack), None, None)
                assert canary.is_unharmed_by(await outcome_of(renderer.render(template, CONVERSATIONS[0]))), attack
            await good(renderer)

    with watched(tmp_path) as canary:
        asyncio.run(main())


def test_escaped_template_can_reach_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with rendering() as renderer:
            assert "popen" in await renderer.render(
                ChatTemplate(
                    "{{ cycler.__init__.__globals__.os }}{{ cycler.__init__.__globals__.os.popen }}", None, None
                ),
                [],
            )
            for attack in ATTACKS.values():
                template = ChatTemplate(canary.aim(attack), None, None)
                assert canary.is_unharmed_by(await outcome_of(renderer.render(template, CONVERSATIONS[0]))), attack

    monkeypatch.setattr(template_process, "_COMMAND", (sys.executable, "-c", UNSANDBOXED))
    with watched(tmp_path) as canary:
        asyncio.run(main())


@named(TIME_BOMBS)
def test_template_over_its_time_ends_only_its_child(source: str) -> None:
    async def main() -> None:
        async with rendering(SHORT_S) as renderer:
            await good(renderer)
            before = renderer.pids
            with pytest.raises(TemplateError, match=f"took longer than {SHORT_S} s; use another model"):
                await renderer.render(ChatTemplate(source, None, None), CONVERSATIONS[0])
            await good(renderer)
            assert len(renderer.pids) == 1
            assert renderer.pids != before

    asyncio.run(main())


def test_render_may_take_two_seconds() -> None:
    async def main() -> None:
        async with rendering(template_renderer.RENDER_TIMEOUT_S) as renderer:
            with pytest.raises(TemplateError, match="took longer than 2 s"):
                await renderer.render(ENDLESS, [])

    asyncio.run(main())


@pytest.mark.skipif(sys.platform != "linux", reason="macOS has no limit of address space")
@named(MEMORY_BOMBS)
def test_template_over_its_memory_ends_only_its_child(source: str) -> None:
    async def main() -> None:
        async with rendering() as renderer:
            await good(renderer)
            before = renderer.pids
            with pytest.raises(TemplateError, match="needs more than 512 MiB of memory"):
                await renderer.render(ChatTemplate(source, None, None), CONVERSATIONS[0])
            await good(renderer)
            assert len(renderer.pids) == 1
            assert renderer.pids != before

    asyncio.run(main())


@named(REFUSED_BOMBS)
def test_bomb_seen_in_time_keeps_its_child(source: str) -> None:
    async def main() -> None:
        async with rendering() as renderer:
            await good(renderer)
            before = renderer.pids
            with pytest.raises(TemplateError):
                await renderer.render(ChatTemplate(source, None, None), CONVERSATIONS[0])
            await good(renderer)
            assert renderer.pids == before

    asyncio.run(main())


def test_other_models_do_not_wait_for_a_bomb() -> None:
    async def main() -> None:
        async with rendering() as renderer:
            bombs = [asyncio.create_task(renderer.render(ENDLESS, [])) for _ in range(2 * CHILDREN)]
            await busy(renderer)
            for _ in range(10):
                await good(renderer)
            assert not any(bomb.done() for bomb in bombs)
            for bomb in bombs:
                bomb.cancel()
            await asyncio.gather(*bombs, return_exceptions=True)

    asyncio.run(main())


def test_same_model_waits_for_a_bomb() -> None:
    async def main() -> None:
        async with rendering(SHORT_S) as renderer:
            bomb = asyncio.create_task(renderer.render(EITHER, [{"content": "99999"}]))
            await asyncio.sleep(0)
            others = [renderer.render(EITHER, [{"content": "0"}]) for _ in range(20)]
            assert await asyncio.gather(*others) == ["."] * 20
            assert "took longer" in await outcome_of(bomb)

    asyncio.run(main())


def test_pending_renders_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with rendering() as renderer:
            bomb = asyncio.create_task(renderer.render(ENDLESS, []))
            await busy(renderer)
            with pytest.raises(TemplateUnavailable, match="1 requests wait"):
                await renderer.render(GOOD, [])
            bomb.cancel()
            await asyncio.gather(bomb, return_exceptions=True)
            await good(renderer)

    monkeypatch.setattr(template_renderer, "MAX_PENDING", 1)
    asyncio.run(main())


def test_waiting_for_a_render_has_a_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with rendering() as renderer:
            bombs = [ENDLESS, ChatTemplate(ENDLESS.source, "another", None)]
            working = [asyncio.create_task(renderer.render(bomb, [])) for bomb in bombs]
            await busy(renderer)
            for template in (ENDLESS, GOOD):  # one waits for its template's lock, the other for a child
                with pytest.raises(TemplateUnavailable, match=r"busy for 0\.05 s"):
                    await renderer.render(template, [])
            for task in working:
                task.cancel()
            await asyncio.gather(*working, return_exceptions=True)
            await good(renderer)

    monkeypatch.setattr(template_renderer, "WAIT_TIMEOUT_S", 0.05)
    asyncio.run(main())

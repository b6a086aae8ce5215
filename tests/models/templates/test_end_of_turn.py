"""`models.templates.end_of_turn`: the text behind an answer is found, whatever the template is like."""

from __future__ import annotations

import asyncio

import pytest

from models.templates.chat_template import ChatTemplate
from models.templates.end_of_turn import text_after_answer
from tests.support.models import CHAT_TEMPLATE
from tests.support.templates import TIME_BOMBS, rendering

PHI = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
ONE_TURN = "{% if messages|length > 1 %}{{ raise_exception('one turn') }}{% endif %}{{ messages[0].content }}"


@pytest.mark.parametrize(
    ("source", "text"),
    [
        (CHAT_TEMPLATE, "<|im_end|>\n"),
        (PHI, "<|end|>"),
        (ONE_TURN, ""),
        ("{{ messages[0].content }}", ""),
        (TIME_BOMBS["nested ranges"], ""),
    ],
    ids=["chatml", "phi", "refuses", "one message", "endless"],
)
def test_text_behind_an_answer_is_found(source: str, text: str) -> None:
    async def main() -> str:
        async with rendering() as renderer:
            return await text_after_answer(renderer, ChatTemplate(source, None, None))

    assert asyncio.run(main()) == text

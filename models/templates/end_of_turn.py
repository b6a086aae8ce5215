"""What a chat template writes behind an assistant's answer: the token that ends a turn. Knows no tokenizer."""

from __future__ import annotations

from models.errors import TemplateError
from models.templates.chat_template import ChatTemplate
from models.templates.renderer import TemplateRenderer

_ANSWER = "answer57"


async def text_after_answer(renderer: TemplateRenderer, template: ChatTemplate) -> str:
    """Render a conversation that ends with an answer, and return what comes after it.

    Empty if the template refuses that conversation; a chat shows why. Raises TemplateUnavailable.
    """
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": _ANSWER}]
    try:
        text = await renderer.render(template, messages, False)
    except TemplateError:
        return ""
    return text.partition(_ANSWER)[2]

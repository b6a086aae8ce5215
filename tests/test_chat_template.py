"""Templates render as transformers renders them, in a sandbox, and fail with one sentence."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from models.chat_template import ChatTemplate
from models.errors import TemplateError
from models.tokenizer import Tokenizer
from tests.rig_models import default_model_path

CONVERSATIONS: list[list[dict[str, Any]]] = [
    [{"role": "user", "content": "What is the capital of France?"}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "  <b>Hi</b> & 'bye' \n"}],
    [
        {"role": "user", "content": "1"},
        {"role": "assistant", "content": "uno – ein 🙂"},
        {"role": "user", "content": "2"},
    ],
]
# A template in the manner of tool-calling models, touching everything that the environment adds to jinja2.
RICH = """
{%- if tools %}
    {{- tools | tojson }}
    {{- tools | tojson(indent=2) }}
{%- endif %}
{% for message in messages %}
    {% if message.role == 'system' %}{% continue %}{% endif %}
{{ bos_token }}{{ message.role }}: {% generation %}{{ message['content'] | trim }}{% endgeneration %}{{ eos_token }}

    {% if loop.index > 2 %}{% break %}{% endif %}
{% endfor %}
{%- if add_generation_prompt %}assistant:{% endif %}{{ style }}
"""
TOOLS = [{"type": "function", "function": {"name": "f", "description": "<é> & 'q'"}}]
REFERENCE = """
import json, sys
from transformers import PreTrainedTokenizerFast
tokenizer = PreTrainedTokenizerFast(tokenizer_file=sys.argv[1], bos_token="<|im_start|>", eos_token="<|im_end|>")
answers = []
for ask in json.load(sys.stdin):
    answers.append(tokenizer.apply_chat_template(ask["messages"], chat_template=ask["template"], tokenize=False,
        add_generation_prompt=ask["prompt"], tools=ask["tools"], style=ask["style"]))
json.dump({"texts": answers, "ids": [tokenizer(text, add_special_tokens=False)["input_ids"] for text in answers]},
    sys.stdout)
"""


def template_of(folder: Path) -> str:
    return str(json.loads((folder / "tokenizer_config.json").read_text())["chat_template"])


def test_rendering_and_ids_equal_those_of_transformers() -> None:
    folder = default_model_path().parent
    asks: list[dict[str, Any]] = [
        {"messages": messages, "template": template, "prompt": prompt, "tools": tools, "style": style}
        for messages in CONVERSATIONS
        for template, tools, style in ((template_of(folder), None, ""), (RICH, None, "x"), (RICH, TOOLS, ""))
        for prompt in (True, False)
    ]
    command = [sys.executable, "-c", REFERENCE, str(folder / "tokenizer.json")]
    child = subprocess.run(command, input=json.dumps(asks), capture_output=True, text=True, timeout=120, check=True)
    reference = json.loads(child.stdout)
    tokenizer = Tokenizer.load(folder)
    for ask, text, ids in zip(asks, reference["texts"], reference["ids"], strict=True):
        template = ChatTemplate(ask["template"], "<|im_start|>", "<|im_end|>")
        found = template.render(ask["messages"], ask["prompt"], tools=ask["tools"], style=ask["style"])
        assert found == text
        assert tokenizer.encode(found) == ids


def test_the_default_model_gets_its_own_prompt() -> None:
    template = Tokenizer.load(default_model_path().parent).chat_template
    assert template is not None
    assert template.render(CONVERSATIONS[0]) == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
    )


def test_json_is_written_without_html_escapes() -> None:
    text = ChatTemplate("{{ tools | tojson }}", None, None).render([], tools=[{"a": "<é>&'"}])
    assert text == '[{"a": "<é>&\'"}]'


def test_the_date_can_be_asked_for() -> None:
    year = ChatTemplate("{{ strftime_now('%Y') }}", None, None).render([])
    assert int(year) in {datetime.now().astimezone().year, datetime.now().astimezone().year - 1}


def test_a_templates_own_refusal_is_passed_on() -> None:
    template = ChatTemplate("{{ raise_exception('roles must alternate') }}", None, None)
    with pytest.raises(TemplateError, match="refuses these messages: roles must alternate"):
        template.render([])


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages[0].content + 1 }}",
        "{{ messages[7].content.x }}",
        "{{ 1 // 0 }}",
        "{{ 'a'.encode('ascii').decode('utf-99') }}",
        "{{ messages.append(1) }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ cycler.__init__.__globals__.os.system('true') }}",
        "{{ range(10000000) | list }}",
        "{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}",
    ],
)
def test_a_template_that_errs_or_reaches_out_ends_in_one_sentence(source: str) -> None:
    with pytest.raises(TemplateError, match="refuses these messages"):
        ChatTemplate(source, None, None).render([{"role": "user", "content": "hi"}])


@pytest.mark.parametrize("source", ["{% if %}", "{{ ", "{% include 'x' %}{% endif %}"])
def test_a_template_that_does_not_compile_is_said_so(source: str) -> None:
    with pytest.raises(TemplateError, match="does not compile"):
        ChatTemplate(source, None, None)


def test_no_other_file_can_be_included() -> None:
    with pytest.raises(TemplateError):
        ChatTemplate("{% include '/etc/passwd' %}", None, None).render([])

"""Templates render as with transformers, in a sandbox, and fail with one sentence."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.errors import TemplateError
from models.templates.chat_template import (
    COMPILED,
    MAX_REASON_CHARACTERS,
    MAX_RENDERED_CHARACTERS,
    MAX_SOURCE_BYTES,
    ChatTemplate,
    _compiled,
)
from models.tokenizers.tokenizer import Tokenizer
from tests.support.models import default_model_path, write_tokenizer_files
from tests.support.templates import ATTACKS, CONVERSATIONS, RICH, TOOLS, template_of, unsandboxed, watched

REFERENCE = """
import json, sys
from transformers import PreTrainedTokenizerFast
tokenizer = PreTrainedTokenizerFast(tokenizer_file=sys.argv[1], bos_token="<|im_start|>", eos_token="<|im_end|>")
texts = []
for request in json.load(sys.stdin):
    texts.append(tokenizer.apply_chat_template(request["messages"], chat_template=request["template"], tokenize=False,
        add_generation_prompt=request["prompt"], tools=request["tools"], style=request["style"]))
json.dump({"texts": texts, "ids": [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]},
    sys.stdout)
"""


def test_text_and_ids_match_those_of_transformers() -> None:
    folder = default_model_path().parent
    requests: list[dict[str, Any]] = [
        {"messages": messages, "template": template, "prompt": prompt, "tools": tools, "style": style}
        for messages in CONVERSATIONS
        for template, tools, style in ((template_of(folder), None, ""), (RICH, None, "x"), (RICH, TOOLS, ""))
        for prompt in (True, False)
    ]
    command = [sys.executable, "-c", REFERENCE, str(folder / "tokenizer.json")]
    child = subprocess.run(command, input=json.dumps(requests), capture_output=True, text=True, timeout=120, check=True)
    reference = json.loads(child.stdout)
    tokenizer = Tokenizer.load(folder)
    for request, text, ids in zip(requests, reference["texts"], reference["ids"], strict=True):
        template = ChatTemplate(request["template"], "<|im_start|>", "<|im_end|>")
        found = template.render(request["messages"], request["prompt"], tools=request["tools"], style=request["style"])
        assert found == text
        assert tokenizer.encode(found) == ids


def test_default_model_renders_its_own_prompt() -> None:
    template = Tokenizer.load(default_model_path().parent).chat_template
    assert template is not None
    assert template.render(CONVERSATIONS[0]) == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
    )


def test_tojson_writes_no_html_escapes() -> None:
    text = ChatTemplate("{{ tools | tojson }}", None, None).render([], tools=[{"a": "<é>&'"}])
    assert text == '[{"a": "<é>&\'"}]'


def test_template_can_write_the_date() -> None:
    year = ChatTemplate("{{ strftime_now('%Y') }}", None, None).render([])
    assert int(year) in {datetime.now().astimezone().year, datetime.now().astimezone().year - 1}


def test_message_of_raise_exception_is_passed_on() -> None:
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
        "{{ range(10000000) | list }}",
        "{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}",
    ],
)
def test_failing_template_raises_template_error(source: str) -> None:
    with pytest.raises(TemplateError, match="refuses these messages"):
        ChatTemplate(source, None, None).render([{"role": "user", "content": "hi"}])


@pytest.mark.parametrize(
    "source", ["{% if %}", "{{ ", "{% include 'x' %}{% endif %}", "{% for a in b %}" * 30 + "{% endfor %}" * 30]
)
def test_template_that_does_not_compile_is_reported(source: str) -> None:
    with pytest.raises(TemplateError, match="does not compile"):
        ChatTemplate(source, None, None).render([])


def test_including_another_file_fails() -> None:
    with pytest.raises(TemplateError):
        ChatTemplate("{% include '/etc/passwd' %}", None, None).render([])


every_attack = pytest.mark.parametrize("attack", ATTACKS.values(), ids=list(ATTACKS))


@every_attack
def test_sandbox_alone_blocks_every_attack(attack: str, tmp_path: Path) -> None:
    with watched(tmp_path) as canary:
        template = ChatTemplate(canary.aim(attack), None, None)
        assert canary.survives(lambda: template.render(CONVERSATIONS[0]))


@every_attack
@pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)  # attacks leak
def test_every_attack_works_without_a_sandbox(attack: str, tmp_path: Path) -> None:
    with watched(tmp_path) as canary:
        template = unsandboxed().from_string(canary.aim(attack))
        assert not canary.survives(lambda: template.render(messages=CONVERSATIONS[0]))


def test_globals_used_only_by_attacks_are_removed() -> None:
    source = "{% for known in [cycler, joiner, lipsum, namespace, range, dict] %}{{ known is defined }} {% endfor %}"
    assert ChatTemplate(source, None, None).render([]) == "False False False True True True "


@given(st.integers(-2, 2), st.sampled_from(["a", "é", "🙂"]))
def test_template_size_is_limited_to_the_byte(beyond: int, letter: str) -> None:
    source = letter * (MAX_SOURCE_BYTES // len(letter.encode()))
    source += "b" * (MAX_SOURCE_BYTES - len(source.encode()) + beyond)
    if beyond > 0:
        with pytest.raises(TemplateError, match=f"has {MAX_SOURCE_BYTES + beyond} bytes"):
            ChatTemplate(source, None, None)
    else:
        assert ChatTemplate(source, None, None).source == source


def test_template_of_invalid_unicode_is_rejected() -> None:
    with pytest.raises(TemplateError, match="not valid text"):
        ChatTemplate("\ud800", None, None)


def test_rendered_text_is_limited_as_it_grows() -> None:
    counted = itertools.count(1)
    template = ChatTemplate("{% for each in messages %}{{ each.content }}{{ '' if count() }}{% endfor %}", None, None)
    most = [{"content": "x" * 1024}] * (MAX_RENDERED_CHARACTERS // 1024)
    assert len(template.render(most, count=lambda: 1)) == MAX_RENDERED_CHARACTERS
    with pytest.raises(TemplateError, match=f"more than {MAX_RENDERED_CHARACTERS} characters"):
        template.render(2 * most, count=lambda: next(counted))
    assert next(counted) <= len(most) + 2


PARTS = (
    "{% for m in messages %}<|{{ m.role }}|>{% for part in m.content %}"
    "{% if part.type == 'text' %}{{ part.text }}{% endif %}{% endfor %}{% endfor %}"
)
EITHER_FORM = PARTS.replace("{% for part", "{% if m.content is string %}{{ m.content }}{% else %}{% for part").replace(
    "{% endfor %}{% endfor %}", "{% endfor %}{% endif %}{% endfor %}"
)
ONLY_LISTS = "{% if messages[0].content is string %}{{ raise_exception('no') }}{% endif %}" + PARTS


@pytest.mark.parametrize("source", [PARTS, EITHER_FORM, ONLY_LISTS], ids=["parts", "either", "only lists"])
def test_words_of_a_conversation_are_written_in_any_form(source: str) -> None:
    text = ChatTemplate(source, None, None).render(CONVERSATIONS[2])
    assert text == "<|user|>1<|assistant|>uno – ein 🙂<|user|>2"


@pytest.mark.parametrize("source", ["<|user|>", "{% for m in messages %}{{ m.text }}{% endfor %}", "{{ bos_token }}"])
def test_template_that_leaves_out_the_user_is_refused(source: str) -> None:
    with pytest.raises(TemplateError, match="leaves out what the user says; use another model"):
        ChatTemplate(source, None, None).render(CONVERSATIONS[0])


def test_template_that_refuses_one_message_decides_with_more() -> None:
    source = "{{ raise_exception('too few') if messages|length < 3 }}{{ messages[2].content }}"
    assert ChatTemplate(source, None, None).render(CONVERSATIONS[2]) == "2"


def test_message_of_a_template_is_cut() -> None:
    with pytest.raises(TemplateError) as caught:
        ChatTemplate("{{ raise_exception('a' * 1000000) }}", None, None).render([])
    assert len(str(caught.value)) < 2 * MAX_REASON_CHARACTERS


def test_compiled_template_cache_is_bounded() -> None:
    for number in range(3 * COMPILED):
        assert ChatTemplate(f"{number}", None, None).render([]) == f"{number}"
    assert _compiled.cache_info().currsize == COMPILED


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"x" * (MAX_SOURCE_BYTES + 1), "far too large for a chat template"), (b"\xff", "not readable UTF-8")],
)
def test_bad_template_file_is_rejected(tmp_path: Path, content: bytes, message: str) -> None:
    write_tokenizer_files(tmp_path)
    (tmp_path / "chat_template.jinja").write_bytes(content)
    with pytest.raises(TemplateError, match=message) as caught:
        Tokenizer.load(tmp_path)
    assert "chat_template.jinja" in str(caught.value)

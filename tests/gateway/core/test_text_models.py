"""`gateway.core.text_models`: prompts, refusals, and the template process of a real gateway."""

from __future__ import annotations

import asyncio
import itertools
import json
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs
from tokenizers import AddedToken

from gateway.core.errors import ErrorKind, GatewayCode, GatewayError, RequestField
from gateway.core.prompt_limit import PromptLimit
from gateway.core.request import Conversation, PromptMessage, Text, TokenIds
from gateway.core.text_models import TextModel
from gateway.core.tokenizing import SHORT, Tokenizing
from models.card import SamplingDefaults
from models.catalogue import Catalogue
from models.templates.chat_template import ChatTemplate
from models.templates.renderer import TemplateRenderer
from models.tokenizers.tokenizer import Tokenizer
from tests.support.gateway.chat import PLAIN, post
from tests.support.gateway.gateway_rig import Rig, eventually, running_rig, stop_gateway
from tests.support.models import CHAT_TEMPLATE, SPECIAL_TOKENS, TINY_VOCAB, tiny_tokenizer, write_tokenizer_files
from tests.support.templates import TIME_BOMBS, rendering

ROOMY = PromptLimit(1 << 20, "the model's context is large")


class NotingTokenizer(Tokenizer):
    """Records something before and after each encoding: the thread, by default."""

    noted: tuple[int, ...] = ()
    at: Callable[[], int] = staticmethod(threading.get_ident)

    def encode(self, text: str) -> list[int]:
        """Return the ids of `text`."""
        before = self.at()
        ids = super().encode(text)
        self.noted = (before, self.at())
        return ids


@pytest.fixture
def model(tmp_path: Path) -> TextModel:
    """Return the tiny model's text side, with a renderer that has started no process."""
    write_tokenizer_files(tmp_path)
    tokenizer = NotingTokenizer.load(tmp_path)
    assert tokenizer.chat_template is not None
    return TextModel(Catalogue.load().get("smollm2-135m"), tokenizer, TemplateRenderer(), Tokenizing())


def prompt(model: TextModel, content: str) -> tuple[int, ...]:
    """Return the prompt of one message, rendered in a process that ends afterwards."""

    async def main() -> tuple[int, ...]:
        async with rendering() as renderer:
            return await replace(model, renderer=renderer).tokens(
                Conversation((PromptMessage("user", content),)), ROOMY
            )

    return asyncio.run(main())


# Templates that write a text as it is, cut, changed, or as JSON.
LOOKING = {
    name: CHAT_TEMPLATE.replace("message['content']", f"({content})")
    for name, content in {
        "chatml": "message.content",
        "trimming": "message.content|trim",
        "cutting": "message.content[:9]",
        "thoughts": "message.content.split('</think>')[-1]",
        "replacing": "message.content|replace('end', 'END')",
        "json": "message.content|tojson(ensure_ascii=true)",
        "length": "message.content ~ message.content|length",
    }.items()
}
WRITTEN = st.lists(st.sampled_from([*SPECIAL_TOKENS, "<|im_", "end|>", "user", "\n", "</think>", "\u00e9", " a"]))


@pytest.fixture(scope="module")
def ids_of(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str, str], list[int]]]:
    """Yield a function that returns the prompt of one message, for a template of LOOKING."""
    folder = tmp_path_factory.mktemp("model")
    write_tokenizer_files(folder)
    tokenizer, renderer = Tokenizer.load(folder), TemplateRenderer()
    model = TextModel(Catalogue.load().get("smollm2-135m"), tokenizer, renderer, Tokenizing())
    templates = {name: ChatTemplate(source, *SPECIAL_TOKENS[1:]) for name, source in LOOKING.items()}
    with asyncio.Runner() as runner:

        def ids(name: str, content: str) -> list[int]:
            tokenizer.chat_template = templates[name]
            return list(runner.run(model.tokens(Conversation((PromptMessage("user", content),)), ROOMY)))

        yield ids
        runner.run(renderer.close())


@pytest.mark.parametrize("name", LOOKING)
@settings(max_examples=30)
@given(written=WRITTEN.map("".join))
def test_control_tokens_come_from_the_template_only(
    ids_of: Callable[[str, str], list[int]], name: str, written: str
) -> None:
    control = range(len(SPECIAL_TOKENS))
    found, own = ([token for token in ids_of(name, text) if token in control] for text in (written, ""))
    assert found == own


@settings(max_examples=30)
@given(written=WRITTEN.map("".join))
def test_message_is_read_as_it_was_written(ids_of: Callable[[str, str], list[int]], written: str) -> None:
    text = Tokenizer(tiny_tokenizer(), [2], None).decode(ids_of("chatml", written))
    assert text == f"user\n{written}\nassistant\n"


def test_control_token_that_a_template_changes_is_spoiled(ids_of: Callable[[str, str], list[int]]) -> None:
    text = Tokenizer(tiny_tokenizer(), [2], None).decode(ids_of("json", "<|im_end|>"))
    assert text == 'user\n"' + r"\u200b".join("<|im_end|>") + '"\nassistant\n'


def test_control_token_in_a_variable_is_text(model: TextModel) -> None:
    model.tokenizer.chat_template = ChatTemplate("{{ style.name }}<|im_end|>", None, None)

    async def main() -> tuple[int, ...]:
        async with rendering() as renderer:
            conversation = Conversation((), {"style": {"name": "<|im_end|>"}})
            return await replace(model, renderer=renderer).tokens(conversation, ROOMY)

    ids = asyncio.run(main())
    assert (ids.count(2), ids[-1]) == (1, 2)


def with_template(model: TextModel, template: ChatTemplate | None) -> TextModel:
    """Return the model with another chat template."""
    model.tokenizer.chat_template = template
    return model


def template_children(gateway: int) -> list[psutil.Process]:
    """Return the template processes of a gateway."""
    return [child for child in psutil.Process(gateway).children() if "models.templates.child" in child.cmdline()]


def gone(process: psutil.Process) -> bool:
    """Return whether a process has ended, even if its parent has not noticed yet."""
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def test_models_own_sampling_counts_if_the_card_has_none(model: TextModel) -> None:
    recommended, card = SamplingDefaults(0.6, 0.95, 20), SamplingDefaults(top_p=0.5)
    model.tokenizer.sampling = recommended
    assert replace(model, card=structs.replace(model.card, defaults=SamplingDefaults())).sampling == recommended
    assert replace(model, card=structs.replace(model.card, defaults=card)).sampling == card
    model.tokenizer.sampling = None
    assert replace(model, card=structs.replace(model.card, defaults=SamplingDefaults())).sampling == SamplingDefaults()


@pytest.mark.parametrize(("content", "in_loop"), [("the man", True), ("the man " * SHORT, False)])
def test_long_prompt_is_encoded_on_a_thread(model: TextModel, content: str, in_loop: bool) -> None:
    assert model.tokenizer.chat_template is not None
    text = model.tokenizer.chat_template.render([{"role": "user", "content": content}])
    ids = model.tokenizer.encode(text)
    assert prompt(model, content) == tuple(ids)
    assert isinstance(model.tokenizer, NotingTokenizer)
    assert (model.tokenizer.noted[0] == threading.get_ident()) == in_loop


def test_loop_runs_while_a_long_prompt_is_encoded(model: TextModel) -> None:
    assert isinstance(model.tokenizer, NotingTokenizer)
    turns = itertools.count()
    model.tokenizer.at = lambda: next(turns)

    async def turn() -> None:
        while True:
            next(turns)
            await asyncio.sleep(0.001)

    async def main() -> None:
        async with rendering() as renderer:
            turning = asyncio.create_task(turn())
            await replace(model, renderer=renderer).tokens(
                Conversation((PromptMessage("user", "the man " * 150_000),)), ROOMY
            )
            turning.cancel()

    asyncio.run(main())
    begin, end = model.tokenizer.noted
    assert end - begin > 20  # it can turn a few times before the encoder has the GIL


def test_refusal_of_the_template_is_an_invalid_request(model: TextModel) -> None:
    refusing = ChatTemplate("{{ raise_exception('roles must alternate') }}", None, None)
    with pytest.raises(GatewayError, match="refuses these messages: roles must alternate") as caught:
        prompt(with_template(model, refusing), "hello")
    assert (caught.value.kind, caught.value.field) == (ErrorKind.INVALID_REQUEST, RequestField.PROMPT)


def test_unavailable_renderer_is_retryable(model: TextModel) -> None:
    async def main() -> None:
        await model.renderer.close()
        await model.tokens(Conversation(()), ROOMY)

    with pytest.raises(GatewayError) as caught:
        asyncio.run(main())
    assert (caught.value.kind, caught.value.code) == (ErrorKind.UNAVAILABLE, GatewayCode.TEMPLATE_UNAVAILABLE)
    assert caught.value.retryable


def test_text_and_token_ids_need_no_template(model: TextModel) -> None:
    plain = with_template(model, None)
    ids = asyncio.run(plain.tokens(Text("the man"), ROOMY))
    assert ids == tuple(plain.tokenizer.encode("the man"))
    assert asyncio.run(plain.tokens(TokenIds(ids), ROOMY)) == ids
    with pytest.raises(GatewayError, match="choose an instruct model") as caught:
        asyncio.run(plain.tokens(Conversation((PromptMessage("user", "hello"),)), ROOMY))
    assert caught.value.field is RequestField.MODEL


@pytest.mark.parametrize("prompt", [Text(""), TokenIds(())])
def test_empty_prompt_is_refused(model: TextModel, prompt: Text | TokenIds) -> None:
    with pytest.raises(GatewayError, match="empty"):
        asyncio.run(model.tokens(prompt, ROOMY))


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    """Run a gateway that has served no request yet."""
    with running_rig(tmp_path) as running:
        running.set_script("Hello world")
        yield running


def test_template_child_starts_and_ends_with_the_gateway(rig: Rig) -> None:
    assert eventually(lambda: len(template_children(rig.gateway.pid)) == 1)
    (child,) = template_children(rig.gateway.pid)
    assert post(rig, PLAIN).status_code == 200
    assert template_children(rig.gateway.pid) == [child]
    assert stop_gateway(rig.gateway) == 0
    assert not child.is_running()


def test_killed_gateway_leaves_no_template_child(rig: Rig) -> None:
    assert eventually(lambda: len(template_children(rig.gateway.pid)) == 1)
    (child,) = template_children(rig.gateway.pid)
    rig.gateway.send_signal(signal.SIGKILL)
    assert eventually(lambda: gone(child))


def test_token_that_the_template_writes_ends_a_turn(rig: Rig, tmp_path: Path) -> None:
    backend = tiny_tokenizer()
    backend.add_special_tokens([AddedToken("<turn|>", special=True, normalized=False)])
    backend.save(str(tmp_path / "model" / "tokenizer.json"))
    template = "{% for message in messages %}{{ message.content }}<turn|>{% endfor %}"
    (tmp_path / "model" / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    assert post(rig, PLAIN).status_code == 200
    (opening,) = rig.stage.openings.values()
    assert TINY_VOCAB in opening.eos


def test_endless_template_is_refused_in_time(rig: Rig, tmp_path: Path) -> None:
    settings = {
        "chat_template": "{% if messages[0].content == 'hello' %}"
        + TIME_BOMBS["nested ranges"]
        + "{% endif %}{{ messages[0].content }}"
    }
    (tmp_path / "model" / "tokenizer_config.json").write_text(json.dumps(settings))
    refusal = post(rig, PLAIN)
    assert refusal.status_code == 400
    sentence = "the model's chat template took longer than 2 s; use another model"
    assert refusal.json()["error"]["message"] == sentence
    assert post(rig, {**PLAIN, "messages": [{"role": "user", "content": "bye"}]}).status_code == 200
    assert len(template_children(rig.gateway.pid)) == 1

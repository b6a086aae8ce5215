"""`gateway.core.generation`'s decisions that need no node: room in the context, sampling, and when a token becomes
text.
"""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.placement import Instance, PlacedStage
from cluster.sampling import SamplingParams
from cluster.shard import Shard
from gateway.core.choice import ChoiceText
from gateway.core.errors import ApiError
from gateway.core.events import Answer
from gateway.core.generation import DEFAULT_MAX_TOKENS, room_for, sampling_of, within_memory
from gateway.core.session import QueuePosition
from gateway.core.text_models import TextModel
from gateway.openai.requests import ChatMessage, ChatRequest
from models.card import SamplingDefaults
from models.catalogue import Catalogue
from models.templates.renderer import TemplateRenderer
from models.tokenizer import Tokenizer
from tests.support.models import EOS_TOKEN_ID, write_tokenizer_files


def request(**fields: Any) -> ChatRequest:
    """A request with these fields."""
    return ChatRequest(model="tiny", messages=[ChatMessage("user", "hello")], **fields)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> TextModel:
    folder = tmp_path_factory.mktemp("model")
    write_tokenizer_files(folder)
    tokenizer = Tokenizer.load(folder)
    assert tokenizer.chat_template is not None
    card = msgspec.structs.replace(
        Catalogue.load().get("smollm2-135m"), defaults=SamplingDefaults(0.25, 0.75, 30, 0.125)
    )
    return TextModel(card, tokenizer, tokenizer.chat_template, TemplateRenderer())


def written(model: TextModel, text: str, tail: list[int], **fields: Any) -> tuple[str, str, int]:
    """The text, the end's reason and the tokens taken when the stage says `text` and then `tail`."""
    tokens = [*model.tokenizer.encode(text), *tail]
    writer = ChoiceText(model, model.tokenizer.eos_token_ids, request(**fields).stops)
    pieces = []
    for number, token in enumerate(tokens, start=1):
        pieces.append(writer.push(token, finished=number == len(tokens)))
        if writer.reason:
            break
    return "".join(pieces), writer.reason, number


@given(st.integers(0, 500), st.none() | st.integers(1, 10**9), st.integers(1, 512))
def test_a_choice_gets_what_was_asked_for_but_never_more_than_is_left(
    prompt_tokens: int, asked: int | None, left: int
) -> None:
    room = room_for(request(max_tokens=asked), prompt_tokens, prompt_tokens + left)
    assert room == min(asked or DEFAULT_MAX_TOKENS, left)


@given(st.integers(1, 500), st.integers(0, 500))
def test_a_prompt_that_leaves_no_room_is_refused_with_both_numbers(context_length: int, beyond: int) -> None:
    with pytest.raises(ApiError) as caught:
        room_for(request(), context_length + beyond, context_length)
    assert str(context_length + beyond) in caught.value.message
    assert f"holds {context_length} " in caught.value.message


def ring(*positions: int) -> Instance:
    """A ring whose stages hold that many positions."""
    n = len(positions)
    stages = (PlacedStage("a", Shard("tiny", at, at + 1, n), positions=held) for at, held in enumerate(positions))
    return Instance("i", "tiny", 1, tuple(stages))


@given(st.integers(1, 500), st.integers(1, 500), st.lists(st.integers(0, 1200), min_size=1, max_size=4))
def test_a_session_never_reserves_more_positions_than_the_smallest_stage_holds(
    max_tokens: int, prompt_tokens: int, positions: list[int]
) -> None:
    held = min((told for told in positions if told), default=10**9)
    if prompt_tokens < held:
        assert within_memory(max_tokens, prompt_tokens, ring(*positions)) == min(max_tokens, held - prompt_tokens)
        return
    with pytest.raises(ApiError) as caught:
        within_memory(max_tokens, prompt_tokens, ring(*positions))
    assert (caught.value.status, caught.value.code, caught.value.param) == (400, "too_large", "messages")
    assert f"holds {held} " in caught.value.message


@pytest.mark.parametrize(
    ("places", "sentence", "cached"),
    [
        ({}, "reading a prompt of 9 tokens", 0),
        ({0: QueuePosition(3, 0)}, "3 answers are ahead of yours", 0),
        ({0: QueuePosition(3, 0), 1: QueuePosition(1, 0)}, "1 answer is ahead of yours", 0),
        ({0: QueuePosition(0, 4), 1: QueuePosition(2, 0)}, "2 answers are ahead of yours", 0),
        ({0: QueuePosition(0, 4)}, "reading a prompt of 9 tokens", 0),
        ({0: QueuePosition(0, 4), 1: QueuePosition(0, 8)}, "reading a prompt of 9 tokens", 4),
    ],
)
def test_an_answer_of_two_choices_waits_for_the_next_and_counts_what_both_found(
    places: dict[int, QueuePosition], sentence: str, cached: int
) -> None:
    answer = Answer(request(n=2))
    answer.open(prompt_tokens=9)
    for choice, place in places.items():
        answer.place(choice, place)
    assert (answer.waits_for, answer.cached_tokens) == (sentence, cached)


def test_what_was_not_asked_for_is_the_cards(model: TextModel) -> None:
    assert sampling_of(request(), model, 3) == SamplingParams(0.25, 0.75, 30, 0.125, 3)
    asked = request(temperature=0.0, top_p=1.0, top_k=0, min_p=0.0)
    assert sampling_of(asked, model, 3) == SamplingParams(0.0, 1.0, 0, 0.0, 3)


def test_the_end_token_ends_the_text_and_is_not_shown(model: TextModel) -> None:
    assert written(model, "hello", [EOS_TOKEN_ID]) == ("hello", "stop", 6)


def test_without_an_end_token_the_limit_ended_it(model: TextModel) -> None:
    assert written(model, "hello", []) == ("hello", "length", 5)


def test_a_stop_string_ends_the_text_before_the_tokens_end(model: TextModel) -> None:
    assert written(model, "hello", [EOS_TOKEN_ID], stop="l") == ("he", "stop", 3)


def test_what_only_looked_like_a_stop_string_is_shown_at_the_end(model: TextModel) -> None:
    assert written(model, "hello", [EOS_TOKEN_ID], stop="o!") == ("hello", "stop", 6)


def test_an_unfinished_character_is_shown_as_a_replacement_at_the_end(model: TextModel) -> None:
    (*_, half, _) = model.tokenizer.encode("xé")
    assert written(model, "x", [half]) == ("x\ufffd", "length", 2)

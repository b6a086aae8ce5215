"""`models.templates.message_form`: every template gets messages in a form that it writes out."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.errors import TemplateError
from models.templates.chat_template import ChatTemplate
from models.templates.message_form import without_system

TURNS = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
REFUSING = "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}" + TURNS
DROPPING = TURNS.replace("messages %}", "messages if m.role != 'system' %}")
TYPED = REFUSING.replace("{{ m.content }}", "{% for part in m.content %}{{ part.text }}{% endfor %}")
PICKY = "{{ raise_exception('three messages, please') if messages|length < 3 }}" + TURNS

SYSTEM, USER, ASSISTANT = ({"role": role, "content": role[0]} for role in ("system", "user", "assistant"))
MESSAGES = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["system", "user", "assistant", "tool"]), "content": st.sampled_from("abcdefgh")}
    ),
    max_size=8,
)


def rendered(source: str, *messages: dict[str, Any]) -> str:
    """Render messages with a template."""
    return ChatTemplate(source, None, None).render(list(messages))


@pytest.mark.parametrize("source", [REFUSING, DROPPING, TYPED], ids=["refusing", "dropping", "typed"])
def test_system_text_begins_the_users_where_there_is_no_role(source: str) -> None:
    assert rendered(source, SYSTEM, USER, ASSISTANT, USER) == "[user]s\n\nu[assistant]a[user]u"
    assert rendered(source, USER) == "[user]u"


def test_system_role_of_a_template_is_used() -> None:
    assert rendered(TURNS, SYSTEM, USER) == "[system]s[user]u"


def test_refusal_that_is_not_about_the_role_is_shown() -> None:
    with pytest.raises(TemplateError, match="three messages, please"):
        rendered(PICKY, SYSTEM, USER)
    assert rendered(PICKY, SYSTEM, USER, ASSISTANT) == "[system]s[user]u[assistant]a"


@pytest.mark.parametrize(
    ("messages", "text"),
    [
        ([SYSTEM, SYSTEM, USER], "[user]s\n\ns\n\nu"),
        ([USER, SYSTEM, USER], "[user]u[user]s\n\nu"),
        ([SYSTEM], "[user]s"),
        ([SYSTEM, ASSISTANT, USER], "[user]s[assistant]a[user]u"),
        ([{**SYSTEM, "content": ""}, USER], "[user]u"),
        ([SYSTEM, {**USER, "content": ""}], "[user]s"),
    ],
)
def test_system_messages_in_any_place_are_kept(messages: list[dict[str, Any]], text: str) -> None:
    assert rendered(DROPPING, *messages) == text


@given(MESSAGES)
def test_no_text_is_lost_without_the_role(messages: list[dict[str, Any]]) -> None:
    kept = without_system(messages)
    texts = [text for message in kept for text in message["content"].split("\n\n")]
    assert texts == [message["content"] for message in messages]
    assert all(message["role"] != "system" for message in kept)


def test_variable_may_have_any_name() -> None:
    names = {"self": "a", "template": "b", "context": "c"}
    assert ChatTemplate("{{ template }}{{ context }}", None, None).render([], True, **names) == "bc"

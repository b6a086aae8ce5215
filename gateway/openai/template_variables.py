"""What a chat request tells the model's chat template besides the messages. Knows no template.

A template ignores variables that it does not know. Their names are those of the models' own templates: Qwen and GLM
read `enable_thinking`, DeepSeek and Granite `thinking`, gpt-oss `reasoning_effort`.
"""

from __future__ import annotations

from typing import Any, Literal

from gateway.openai.field_errors import MAX_NAME, invalid

ReasoningEffort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
RESERVED = frozenset(
    {"messages", "add_generation_prompt", "bos_token", "eos_token", "tools", "chat_template", "tokenize"}
)
"""Names that a request may not give to a template: its other fields and the model say what they are."""

_FIELD = "chat_template_kwargs"


def checked_arguments(value: Any) -> dict[str, Any] | None:
    """Return the value of `chat_template_kwargs`. Raises FieldError unless it is null or names variables."""
    if value is None:
        return None
    if not isinstance(value, dict):
        raise invalid(_FIELD, "is not valid: expected an object")
    for name in value:
        if name in RESERVED:
            raise invalid(_FIELD, f"may not set {name}; leave that out")
        if not name.isidentifier():
            raise invalid(_FIELD, f"has a name that is no variable's: {name[:MAX_NAME]!r}")
    return value


def template_variables(
    arguments: dict[str, Any] | None, effort: ReasoningEffort | None, thinking: bool | None
) -> dict[str, Any]:
    """Return the variables of a template. What `chat_template_kwargs` names wins, then `enable_thinking`.

    A `reasoning_effort` other than none asks for thinking; none asks for an answer without.
    """
    asked: dict[str, Any] = {}
    if effort is not None:
        asked = {} if effort == "none" else {"reasoning_effort": effort}
        thinking = effort != "none" if thinking is None else thinking
    if thinking is not None:
        asked |= {"enable_thinking": thinking, "thinking": thinking}
    return asked | (arguments or {})

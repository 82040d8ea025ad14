"""What is said of a body that is wrong: where, and in words that are not pydantic's own."""

from typing import Any

import pytest
from pydantic import ValidationError

from parctl.runtime.serving.bodies import ChatBody, CompletionBody, SamplingBody, first_fault

IMAGE = {"type": "image_url", "image_url": {"url": "data:,"}}
TEXT = {"type": "text", "text": "a"}


def fault(kind: type[SamplingBody], **content: Any) -> tuple[str, str | None]:
    with pytest.raises(ValidationError) as caught:
        kind.model_validate({"model": "m", **content})
    return first_fault(caught.value)


def said_of(content: Any) -> str:
    message, param = fault(ChatBody, messages=[{"role": "user", "content": content}])
    assert param == "messages"
    return message


def test_a_part_that_is_no_text_is_named() -> None:
    wanted = "texts are all that is read; a part is {'type': 'text', 'text': ...}"
    assert said_of([TEXT, IMAGE]) == f"messages.0.content.1.type: {wanted}"
    assert said_of([{"type": "text"}]) == "messages.0.content.0.text: Field required"
    assert said_of([]).startswith("messages.0.content: List should have at least 1 item")
    assert said_of(5) == "messages.0.content: Input should be a valid string"


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ([], "prompt: List should have at least 1 item after validation, not 0"),
        (["a", 5], "prompt.1: Input should be a valid string"),
        ([1, -1], "prompt.1: Input should be greater than or equal to 0"),
        ({"a": 1}, "prompt: Input should be a valid string"),
    ],
)
def test_a_field_of_several_kinds_is_named_without_them(prompt: Any, message: str) -> None:
    assert fault(CompletionBody, prompt=prompt) == (message, "prompt")


def test_other_fields_are_as_they_were() -> None:
    assert fault(CompletionBody, prompt="a", suffix="b")[0].startswith("suffix: texts are")
    assert fault(CompletionBody, prompt="a", what=1)[1] == "what"
    assert fault(CompletionBody, prompt="a", stop=[""])[0].startswith("stop.0: String should have")

"""The official client against a real endpoint."""

import json
from collections.abc import Iterator

import openai
import pytest
from openai import OpenAI
from tests.runtime.serving.endpoint import MODEL, Endpoint


@pytest.fixture(scope="module")
def client(endpoint: Endpoint) -> Iterator[OpenAI]:
    with connect(endpoint, endpoint.key) as client:
        yield client


def connect(endpoint: Endpoint, key: str | None) -> OpenAI:
    return OpenAI(base_url=endpoint.url, api_key=key, max_retries=0, timeout=60)


def test_the_model_is_listed_and_found(client: OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).owned_by == "parctl"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("another")


def test_a_streamed_completion_is_the_same_as_the_whole(client: OpenAI) -> None:
    whole = client.completions.create(model=MODEL, prompt="A pipeline", max_tokens=12)
    events = list(
        client.completions.create(
            model=MODEL,
            prompt="A pipeline",
            max_tokens=12,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    text = "".join(event.choices[0].text for event in events if event.choices)
    assert text == whole.choices[0].text
    assert whole.usage is not None
    assert whole.usage.model_dump(include={"prompt_tokens", "completion_tokens"}) == {
        "prompt_tokens": len("A pipeline"),
        "completion_tokens": 12,
    }
    assert events[-1].usage is not None and events[-1].usage.completion_tokens == 12
    assert [choice.finish_reason for event in events for choice in event.choices][-1] == "length"


def test_a_conversation_is_the_completion_of_its_template(client: OpenAI) -> None:
    answer = client.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": "why?"}], max_tokens=6
    )
    plain = client.completions.create(model=MODEL, prompt="user: why?\nassistant:", max_tokens=6)
    assert answer.choices[0].message.content == plain.choices[0].text
    assert answer.choices[0].message.role == "assistant"
    deltas = list(
        client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": "why?"}], max_tokens=6, stream=True
        )
    )
    assert deltas[0].choices[0].delta.role == "assistant"
    streamed = "".join(delta.choices[0].delta.content or "" for delta in deltas)
    assert streamed == plain.choices[0].text


def test_several_prompts_and_samples_are_numbered_prompt_by_prompt(client: OpenAI) -> None:
    alone = [
        client.completions.create(model=MODEL, prompt=prompt, max_tokens=5).choices[0].text
        for prompt in ("one", "two")
    ]
    together = client.completions.create(model=MODEL, prompt=["one", "two"], n=2, max_tokens=5)
    assert [choice.index for choice in together.choices] == [0, 1, 2, 3]
    assert [choice.text for choice in together.choices] == [
        alone[0], alone[0], alone[1], alone[1],
    ]  # fmt: skip


def test_a_seed_repeats_an_answer_and_samples_of_it_differ(client: OpenAI) -> None:
    def ask(seed: int) -> list[str]:
        answer = client.completions.create(
            model=MODEL, prompt="x", n=2, seed=seed, temperature=1.0, max_tokens=8
        )
        return [choice.text for choice in answer.choices]

    first = ask(1)
    assert ask(1) == first
    assert ask(2) != first
    assert first[0] != first[1]


def test_tokens_are_prompts_too(client: OpenAI) -> None:
    text = client.completions.create(model=MODEL, prompt="abc", max_tokens=5).choices[0].text
    tokens = client.completions.create(model=MODEL, prompt=[97, 98, 99], max_tokens=5)
    assert tokens.choices[0].text == text


def test_a_stop_text_ends_an_answer_and_is_left_out(client: OpenAI) -> None:
    whole = client.completions.create(
        model=MODEL, prompt="stop", max_tokens=16, temperature=1.0, seed=3,
        extra_body={"guided_regex": "[a-z]{16,40}"},
    )  # fmt: skip
    text = whole.choices[0].text
    stop = text[5:7]
    cut = client.completions.create(
        model=MODEL, prompt="stop", max_tokens=16, temperature=1.0, seed=3, stop=stop,
        extra_body={"guided_regex": "[a-z]{16,40}"},
    )  # fmt: skip
    assert cut.choices[0].text == text[: text.index(stop)]
    assert cut.choices[0].finish_reason == "stop"


def test_log_probabilities_are_those_of_the_chosen_tokens(client: OpenAI) -> None:
    answer = client.completions.create(model=MODEL, prompt="abc", max_tokens=3, logprobs=2)
    told = answer.choices[0].logprobs
    assert told is not None and told.token_logprobs is not None and told.top_logprobs is not None
    assert len(told.token_logprobs) == 3
    for own, top in zip(told.token_logprobs, told.top_logprobs, strict=True):
        assert own == max(top.values())  # greedy: the chosen one is the likeliest
    chat = client.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": "a"}], max_tokens=2, logprobs=True,
        top_logprobs=3,
    )  # fmt: skip
    assert chat.choices[0].logprobs is not None and chat.choices[0].logprobs.content is not None
    assert [len(entry.top_logprobs) for entry in chat.choices[0].logprobs.content] == [3, 3]


def test_output_follows_a_schema(client: OpenAI) -> None:
    schema = {
        "type": "object",
        "properties": {"colour": {"enum": ["red", "blue"]}, "count": {"enum": [1, 2, 3]}},
        "required": ["colour", "count"],
        "additionalProperties": False,
    }
    answer = client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": "describe"}],
        max_tokens=60,
        temperature=1.0,
        seed=5,
        response_format={
            "type": "json_schema",
            "json_schema": {"name": "thing", "schema": schema},
        },
    )
    content = json.loads(answer.choices[0].message.content or "")
    assert content["colour"] in ("red", "blue") and content["count"] in (1, 2, 3)
    assert answer.choices[0].finish_reason == "stop"


def test_a_wrong_key_opens_nothing(endpoint: Endpoint) -> None:
    with connect(endpoint, "sesame") as wrong:
        with pytest.raises(openai.AuthenticationError):
            wrong.models.list()
        with pytest.raises(openai.AuthenticationError):
            wrong.completions.create(model=MODEL, prompt="a")
    with connect(endpoint, "other-key") as other:
        assert [model.id for model in other.models.list()] == [MODEL]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": ""}, "prompt"),
        ({"prompt": "a" * 200}, "prompt"),
        ({"prompt": [300]}, "prompt"),
        ({"prompt": "a", "n": 9}, "n"),
        ({"prompt": "a", "temperature": 3.0}, "temperature"),
        ({"prompt": "a", "extra_body": {"colour": "red"}}, "colour"),
        ({"prompt": "a", "extra_body": {"guided_regex": "["}}, "guided_regex"),
        ({"prompt": "a", "logit_bias": {"300": 1}}, "logit_bias"),
        ({"prompt": "a", "logit_bias": {"97": 101}}, "logit_bias"),
    ],
)
def test_the_field_at_fault_is_named(client: OpenAI, fields: dict[str, object], param: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(**{"model": MODEL, **fields})  # type: ignore[call-overload]
    assert caught.value.param == param


def test_an_echo_is_the_prompt_before_the_answer(client: OpenAI) -> None:
    plain = client.completions.create(model=MODEL, prompt=["one", "two"], max_tokens=5)
    echoed = client.completions.create(model=MODEL, prompt=["one", "two"], max_tokens=5, echo=True)
    assert [choice.text for choice in echoed.choices] == [
        "one" + plain.choices[0].text, "two" + plain.choices[1].text,
    ]  # fmt: skip
    assert echoed.usage == plain.usage
    streamed = client.completions.create(
        model=MODEL, prompt=[111, 110, 101], max_tokens=5, echo=True, stream=True
    )
    text = "".join(event.choices[0].text for event in streamed)
    assert text == echoed.choices[0].text  # the tokens are those of `one`


def test_a_bias_draws_a_token_in_or_bars_it(client: OpenAI) -> None:
    drawn = client.completions.create(
        model=MODEL, prompt="abc", max_tokens=4, logit_bias={"120": 100}
    )
    assert drawn.choices[0].text == "xxxx"
    chat = client.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": "a"}], max_tokens=3,
        logit_bias={"120": 100, "121": 50},
    )  # fmt: skip
    assert chat.choices[0].message.content == "xxx"


def test_the_best_of_as_many_as_are_asked_for_are_all(client: OpenAI) -> None:
    sampled = {"model": MODEL, "prompt": "x", "n": 2, "seed": 1, "temperature": 1.0}
    plain = client.completions.create(**sampled)  # type: ignore[call-overload]
    ranked = client.completions.create(**sampled, best_of=2)  # type: ignore[call-overload]
    assert [one.text for one in ranked.choices] == [one.text for one in plain.choices]


def test_any_json_object_is_a_form_too(client: OpenAI) -> None:
    answer = client.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": "a"}], max_tokens=100, temperature=1.0,
        seed=4, response_format={"type": "json_object"},
        # a random model hardly ever closes a text by itself
        logit_bias={str(ord("}")): 30},
    )  # fmt: skip
    assert isinstance(json.loads(answer.choices[0].message.content or ""), dict)


TOOL = {"type": "function", "function": {"name": "weather", "parameters": {}}}


@pytest.mark.parametrize(
    ("fields", "param", "why"),
    [
        ({"suffix": "end"}, "suffix", "continued at their end only"),
        ({"best_of": 3}, "best_of", "best_of = 3 and n = 1: answers are not ranked"),
        ({"echo": True, "logprobs": 1}, "echo", "log-probabilities of prompts are not computed"),
        ({"tools": [TOOL]}, "tools", "tools are not called"),
        ({"tools": [TOOL], "tool_choice": "auto"}, "tools", "tools are not called"),
        ({"tool_choice": "required"}, "tool_choice", "tools are not called"),
        ({"functions": [TOOL["function"]]}, "functions", "functions are not called"),
        ({"modalities": ["audio"]}, "modalities", "answers are text"),
        ({"response_format": {"type": "xml"}}, "response_format", "json_schema"),
        ({"response_format": {"type": "json_schema"}}, "response_format", "schema is missing"),
    ],
)
def test_what_is_not_there_is_refused_with_the_reason(
    client: OpenAI, fields: dict[str, object], param: str, why: str
) -> None:
    of_conversations = {"tools", "tool_choice", "functions", "modalities"} & set(fields)
    with pytest.raises(openai.BadRequestError, match=why) as caught:
        if of_conversations:
            client.chat.completions.create(
                model=MODEL, messages=[{"role": "user", "content": "a"}], extra_body=fields
            )
        else:
            client.completions.create(model=MODEL, prompt="a", extra_body=fields)
    assert caught.value.param == param

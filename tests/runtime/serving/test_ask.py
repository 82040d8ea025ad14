"""From bodies to what the engine is asked, for a model of bytes whose token 0 ends a text."""

from pathlib import Path
from typing import Any

import pytest

from parctl.recipes.loader import load_recipe
from parctl.runtime.inference.chat import load_template
from parctl.runtime.inference.detokenize import ByteText
from parctl.runtime.inference.request import Emitted, Sampling
from parctl.runtime.serving.ask import BadRequestError, Limits, Reader
from parctl.runtime.serving.bodies import CompletionBody
from parctl.runtime.serving.samples import AnswerWriter

LIMITS = Limits(vocab_size=256, max_context=128, max_sequences=4, max_samples=4)


@pytest.fixture
def reader(tmp_path: Path) -> Reader:
    file = tmp_path / "serve.yaml"
    file.write_text("version: 1\ntask: serve\nmodel: tiny-llama\nparallelism: DP1\n")
    serve = load_recipe(str(file)).serve
    assert serve is not None
    return Reader(
        tokenizer=ByteText(),
        tokenizer_name="byte",
        template=load_template("byte", None),
        defaults=serve.sampling,
    )


def sampling(reader: Reader, **fields: Any) -> Sampling:
    body = CompletionBody.model_validate({"model": "m", "prompt": "a", **fields})
    return reader.completion(body, LIMITS).sampling


def test_what_ends_a_text_is_the_models_and_the_bodys(reader: Reader) -> None:
    assert sampling(reader).stop_tokens == (0,)
    assert sampling(reader, stop_token_ids=[65, 0]).stop_tokens == (0, 65)
    assert sampling(reader, ignore_eos=True).stop_tokens == ()
    assert sampling(reader, ignore_eos=True, stop_token_ids=[65]).stop_tokens == (65,)
    assert sampling(reader, min_tokens=4).min_tokens == 4


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"stop_token_ids": [256]}, "stop_token_ids", "token 256 is not one of 256"),
        ({"min_tokens": 9, "max_tokens": 8}, "min_tokens", "more than max_tokens = 8"),
        ({"min_tokens": 1, "guided_regex": "a"}, "min_tokens", "ends where the form does"),
        ({"ignore_eos": True, "guided_regex": "a"}, "ignore_eos", "ends where the form does"),
    ],
)
def test_fields_that_contradict_each_other_are_refused(
    reader: Reader, fields: dict[str, Any], param: str, message: str
) -> None:
    with pytest.raises(BadRequestError, match=message) as caught:
        sampling(reader, **fields)
    assert caught.value.param == param


def test_stop_strings_count_after_the_least_number_of_tokens(reader: Reader) -> None:
    asked = sampling(reader, stop="b", min_tokens=2)
    writer = AnswerWriter(0, ByteText(), asked)
    for letter in "abab":
        writer.add(
            Emitted(
                request_id="r",
                sample_index=0,
                token=ord(letter),
                logprob=None,
                top_logprobs=(),
                finish_reason=None,
            )
        )
    assert (writer.answer.text, writer.answer.finish_reason) == ("aba", "stop")

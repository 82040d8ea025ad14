"""Conversations as prompts, by templates of strangers."""

import json
from pathlib import Path

import pytest

from parctl.errors import UsageError
from parctl.runtime.inference.chat import ChatTemplate, TemplateError, load_template

MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "<b>Why?</b>"},
]
TEMPLATE = """{{ bos_token }}{% for message in messages %}
{% if message['role'] not in ['system', 'user', 'assistant'] %}
{{ raise_exception('no role ' + message['role']) }}
{% endif %}
[{{ message['role'] }}] {{ message['content'] | trim }}{{ eos_token }}
{% endfor %}
{% if add_generation_prompt %}[assistant]{% endif %}"""


def test_without_a_template_messages_are_lines() -> None:
    assert ChatTemplate(None, {}, "none").render(MESSAGES) == (
        "system: Be brief.\nuser: <b>Why?</b>\nassistant:"
    )


def test_the_template_writes_marks_and_asks_for_an_answer() -> None:
    template = ChatTemplate(TEMPLATE, {"bos_token": "<s>", "eos_token": "</s>"}, "test")
    assert template.render(MESSAGES) == (
        "<s>[system] Be brief.</s>\n[user] <b>Why?</b></s>\n[assistant]"
    )


def test_it_renders_as_transformers_does(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel({"<s>": 0, "</s>": 1}, unk_token="<s>"))
    theirs = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", chat_template=TEMPLATE
    )
    theirs.save_pretrained(tmp_path)
    ours = load_template(str(tmp_path / "tokenizer.json"), None)
    assert ours.render(MESSAGES) == theirs.apply_chat_template(
        MESSAGES, tokenize=False, add_generation_prompt=True
    )


def test_it_is_found_in_the_configuration_or_in_its_own_file(tmp_path: Path) -> None:
    config = {
        "bos_token": {"content": "<s>"},
        "chat_template": [
            {"name": "tool", "template": "other"},
            {"name": "default", "template": "{{ bos_token }}named"},
        ],
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = str(tmp_path / "tokenizer.json")
    assert load_template(tokenizer, None).render(MESSAGES) == "<s>named"
    (tmp_path / "chat_template.jinja").write_text("file")
    assert load_template(tokenizer, None).render(MESSAGES) == "file"
    (tmp_path / "given.jinja").write_text("given")
    assert load_template(tokenizer, str(tmp_path / "given.jinja")).render(MESSAGES) == "given"


def test_a_refusal_of_the_template_is_told() -> None:
    template = ChatTemplate(TEMPLATE, {"bos_token": "", "eos_token": ""}, "test")
    with pytest.raises(TemplateError, match="no role tool"):
        template.render([{"role": "tool", "content": "x"}])


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages.__class__.__mro__[1].__subclasses__() }}",
        "{{ ''.__class__.__base__.__subclasses__() }}",
        "{{ cycler.__init__.__globals__ }}",
        "{{ raise_exception.__globals__['Path'] }}",
        "{{ messages.append(1) }}",
        "{{ '%s' | format(messages.__init__.__globals__) }}",
    ],
)
def test_a_template_reaches_nothing_but_the_messages(source: str) -> None:
    with pytest.raises(TemplateError):
        ChatTemplate(source, {}, "test").render(MESSAGES)


def test_what_is_no_template_is_refused_at_once() -> None:
    with pytest.raises(UsageError, match="not a template"):
        ChatTemplate("{% if %}", {}, "test")

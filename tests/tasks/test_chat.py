"""Chat templates beside transformers' own rendering, and what a hostile or broken one can do."""

import json
from pathlib import Path
from typing import Any

import pytest

from qconvert.errors import UserError
from qconvert_evals.tasks.chat import ChatTemplate, find_template

QWEN = (
    "{%- if messages[0].role == 'system' %}{{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}"
    "{%- endif %}\n"
    "{%- for message in messages %}\n"
    "    {%- if message.role == 'system' %}{%- continue %}{%- endif %}\n"
    "    {%- set content = message.content %}\n"
    "    {%- if message.role == 'assistant' and '</think>' in content %}\n"
    "        {%- set content = content.split('</think>')[-1].lstrip('\\n') %}\n"
    "    {%- endif %}\n"
    "    {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}\n"
    "{%- endfor %}\n"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n<think>\\n' }}{%- endif %}"
)
TRIMMING = (
    "{{ bos_token }}{% for m in messages %}{% generation %}[{{ m['role'] }}] {{ m['content'] | trim }}"
    "{% endgeneration %}"
    "{{ {'a': '<ü>'} | tojson }}{{ eos_token }}\n{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)
NO_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}{{ messages[0]['content'] }}"
)
CHATS: list[list[dict[str, str]]] = [
    [{"role": "user", "content": "Two and two?"}],
    [{"role": "system", "content": "Be short."}, {"role": "user", "content": " 1 < 2? \n"}],
    [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "<think>x</think>\n\nb"},
        {"role": "user", "content": "c"},
        {"role": "assistant", "content": "The answer is "},
    ],
]
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}


@pytest.mark.parametrize("source", [QWEN, TRIMMING], ids=["qwen", "trimming"])
@pytest.mark.parametrize("chat", CHATS, ids=["user", "system", "several"])
def test_rendered_as_transformers_does(source: str, chat: list[dict[str, str]]) -> None:
    utilities = pytest.importorskip("transformers.utils.chat_template_utils")
    template = ChatTemplate(source, TOKENS, "here")

    def theirs(**settings: Any) -> str:
        rendered, _ = utilities.render_jinja_template([chat], chat_template=source, **settings, **TOKENS)
        return str(rendered[0])

    assert template.render(chat) == theirs(add_generation_prompt=True)
    assert template.render(chat, add_generation_prompt=False) == theirs(continue_final_message=True)


def test_a_template_that_refuses_the_system_message_is_rendered_without_it() -> None:
    assert ChatTemplate(NO_SYSTEM, {}, "here").render(CHATS[1]) == CHATS[1][1]["content"]


@pytest.mark.parametrize(
    ("source", "what"),
    [
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "cannot render"),
        ("{{ messages.append({'role': 'user', 'content': 'mine'}) }}", "cannot render"),
        ("{{ raise_exception('not like this') }}", "cannot render"),
        ("{% if %}", "no valid template"),
    ],
)
def test_hostile_and_broken_templates_end_in_one_message(source: str, what: str) -> None:
    with pytest.raises(UserError, match=what):
        ChatTemplate(source, {}, "here").render(CHATS[0])


def test_a_message_that_the_template_drops_cannot_be_continued() -> None:
    with pytest.raises(UserError, match="leaves out the last message"):
        ChatTemplate("{{ messages[0]['content'] }}", {}, "here").render(CHATS[2], add_generation_prompt=False)


def test_where_templates_are_found(tmp_path: Path) -> None:
    config = tmp_path / "tokenizer_config.json"
    assert find_template(tmp_path) is None
    config.write_text(json.dumps({"bos_token": None, "eos_token": {"content": "</s>"}}))
    assert find_template(tmp_path) is None
    config.write_text(json.dumps({"chat_template": "old", "eos_token": {"content": "</s>"}}))
    found = find_template(tmp_path)
    assert found is not None and (found.source, found.special_tokens) == ("old", {"eos_token": "</s>"})
    config.write_text(json.dumps({"chat_template": [{"name": "tool_use", "template": "t"}]}))
    with pytest.raises(UserError, match="none is the default"):
        find_template(tmp_path)
    config.write_text(json.dumps({"chat_template": [{"name": "default", "template": "d"}]}))
    assert find_template(tmp_path).source == "d"  # type: ignore[union-attr]
    (tmp_path / "chat_template.jinja").write_text("new")
    assert find_template(tmp_path).source == "new"  # type: ignore[union-attr]
    config.write_text("{")
    with pytest.raises(UserError, match="tokenizer's settings"):
        find_template(tmp_path)

"""Chat templates: messages to the text that the model reads, rendered as transformers renders them.

    chat_template.jinja, else `chat_template` of tokenizer_config.json (of several, the one called "default")

A template is code from a checkpoint. It runs in jinja2's immutable sandbox: no attribute that leads to Python, no
change of what it was given. Its names: messages, add_generation_prompt, tools and documents (none), the special tokens,
raise_exception and strftime_now.

Left out: tools, documents, and a named template other than the default.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Mapping, Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from qconvert.errors import UserError, first_line

if TYPE_CHECKING:
    from jinja2 import Template

FILE, CONFIG = "chat_template.jinja", "tokenizer_config.json"
MARKER = "qconvert-continues-here "  # stands behind a message that is to be continued, to find its end again


class ChatTemplate:
    """One template with the special tokens that it may name."""

    def __init__(self, source: str, special_tokens: Mapping[str, str], where: str) -> None:
        self.source, self.where = source, where
        self.special_tokens = dict(special_tokens)

    @cached_property
    def _template(self) -> Template:
        from jinja2 import TemplateError
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        options: dict[str, Any] = {"trim_blocks": True, "lstrip_blocks": True}
        environment = ImmutableSandboxedEnvironment(
            extensions=["jinja2.ext.loopcontrols", _generation_tag()], **options
        )
        environment.filters["tojson"] = _to_json
        environment.globals.update(raise_exception=_raise, strftime_now=_now)
        try:
            return environment.from_string(self.source)
        except TemplateError as error:
            raise UserError(
                "the chat template is no valid template", where=self.where, found=first_line(error)
            ) from error

    def render(self, messages: Sequence[Mapping[str, str]], add_generation_prompt: bool = True) -> str:
        """The prompt; without a generation prompt it ends where the last message does, for the model to go on there."""
        from jinja2 import TemplateError

        history = [dict(message) for message in messages]
        if not add_generation_prompt:
            history[-1]["content"] += MARKER
        try:
            text = self._template.render(
                messages=history,
                tools=None,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                **self.special_tokens,
            )
        except (TemplateError, TypeError) as error:
            if len(messages) > 1 and messages[0].get("role") == "system":  # lm-eval then leaves it out, and so do we
                return self.render(messages[1:], add_generation_prompt)
            found = first_line(error)
            raise UserError("the chat template cannot render these messages", where=self.where, found=found) from error
        return text if add_generation_prompt else _up_to_marker(text, self.where)


def find_template(folder: Path) -> ChatTemplate | None:
    """The template of a checkpoint folder, None where it has none."""
    config = _tokenizer_config(folder)
    tokens = {key: text for key in config if key.endswith("_token") and (text := token_text(config[key])) is not None}
    if (folder / FILE).is_file():
        return ChatTemplate((folder / FILE).read_text("utf-8"), tokens, str(folder / FILE))
    found = config.get("chat_template")
    if isinstance(found, list):
        named = {one.get("name"): one.get("template") for one in found if isinstance(one, dict)}
        found = named.get("default")
        if named and found is None:
            raise UserError(
                "the checkpoint has several chat templates and none is the default",
                where=str(folder / CONFIG),
                found=", ".join(map(str, named)),
            )
    return ChatTemplate(found, tokens, str(folder / CONFIG)) if isinstance(found, str) else None


def _tokenizer_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise UserError("cannot read the tokenizer's settings", where=str(path), found=first_line(error)) from error
    return found if isinstance(found, dict) else {}


def token_text(value: Any) -> str | None:
    """A special token of tokenizer_config.json: a string, or an object with its content."""
    text = value.get("content") if isinstance(value, dict) else value
    return text if isinstance(text, str) else None


def _up_to_marker(text: str, where: str) -> str:
    """The text before the marker behind the last message; a template that trims messages trimmed its end as well."""
    place = text.rfind(MARKER.strip())
    if place < 0:
        raise UserError("the chat template leaves out the last message, so it cannot be continued", where=where)
    return text[:place] if text[place : place + len(MARKER)] == MARKER else text[:place].rstrip()


def _raise(message: str) -> NoReturn:
    from jinja2 import TemplateError

    raise TemplateError(message)


@cache
def _started() -> datetime.datetime:
    """One moment for all prompts of a run: a date that changes at midnight would make the lanes' prompts differ."""
    return datetime.datetime.now()


def _now(form: str) -> str:
    return _started().strftime(form)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """jinja2's own filter escapes HTML, which a prompt must not."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _generation_tag() -> type[Any]:
    """{% generation %} marks what an assistant said, for training; here it is only its content."""
    from jinja2 import nodes
    from jinja2.ext import Extension

    class Generation(Extension):
        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            call: Callable[..., Any] = self.call_method
            return nodes.CallBlock(call("_content"), [], [], body).set_lineno(line)

        def _content(self, caller: Callable[[], str]) -> str:
            return caller()

    return Generation

"""Messages to the text a model was trained on: Hugging Face chat templates, in a sandbox.

What a template may use is what transformers' apply_chat_template offers (`render_jinja_template`): trim and lstrip
blocks, loop controls, `{% generation %}`, `tojson`, `raise_exception`, `strftime_now`, messages, tools, documents, the
special tokens, and the caller's own variables.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.nodes import CallBlock, Node
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from baton_api.errors import BadRequest, SettingError

Message = Mapping[str, Any]
RESERVED = frozenset({"messages", "tools", "documents", "add_generation_prompt"})
_REASONING = ("reasoning_content", "thinking", "reasoning")
_END = "CONTINUE_FINAL_MESSAGE_TAG "


class _Generation(Extension):
    """`{% generation %}` marks what the assistant wrote, for training; here it only shows its content."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return CallBlock(self.call_method("_show"), [], [], body).set_lineno(line)

    def _show(self, caller: Callable[[], str]) -> str:
        return caller()


class ChatTemplate:
    """The templates of one model by name; "default" is used, or "tool_use" when there is one and tools are given.

    Raises SettingError when a template does not compile or there is no default.
    """

    def __init__(
        self,
        templates: Mapping[str, str],
        special_tokens: Mapping[str, str],
        now: Callable[[], datetime] = datetime.now,
    ) -> None:
        if "default" not in templates:
            raise SettingError("chat_template", sorted(templates), "has no default", 'name one template "default"')
        environment = _environment(now)
        self._special_tokens = dict(special_tokens)
        self._sources = dict(templates)
        self._compiled = {name: _compile(environment, source) for name, source in templates.items()}

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """The prompt. Encode it without special tokens: it has its own. Raises BadRequest with `param` "messages" when
        the template refuses them, whatever its reason."""
        variables = dict(variables or {})
        _check(messages, variables, add_generation_prompt and continue_final_message)
        name = "tool_use" if tools is not None and "tool_use" in self._compiled else "default"
        plain = [_plain(message) for message in messages]
        if continue_final_message:
            plain[-1] = _marked(plain[-1])
        try:
            text = self._compiled[name].render(
                **{**self._special_tokens, **variables},
                messages=plain,
                tools=list(tools) if tools is not None else None,
                documents=documents,
                add_generation_prompt=add_generation_prompt,
            )
        except Exception as error:
            # A template is a program: what it raises over odd messages can be any exception.
            raise BadRequest(f"the model's chat template refused the messages: {error}", param="messages") from error
        return _cut(text) if continue_final_message else text


def load_templates(folder: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """Templates by name: `chat_template.jinja`, `additional_chat_templates/NAME.jinja`, or, without these, what
    tokenizer_config.json says under `chat_template` (text, or a list of {name, template})."""
    found = {path.stem: path.read_text("utf-8") for path in sorted(folder.glob("additional_chat_templates/*.jinja"))}
    main = folder / "chat_template.jinja"
    if main.is_file():
        found["default"] = main.read_text("utf-8")
    if found:
        return found
    configured = config.get("chat_template")
    if isinstance(configured, str):
        return {"default": configured}
    return {row["name"]: row["template"] for row in configured or ()}


def _environment(now: Callable[[], datetime]) -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda form: now().strftime(form)
    return environment


def _compile(environment: ImmutableSandboxedEnvironment, source: str) -> jinja2.Template:
    try:
        return environment.from_string(source)
    except jinja2.TemplateSyntaxError as error:
        why = f"does not compile, line {error.lineno}: {error.message}"
        raise SettingError("chat_template", source[:80], why, "mend the model's chat template") from error


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # jinja2's own filter escapes HTML, which no model was trained on.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _check(messages: Sequence[Message], variables: Mapping[str, Any], both_ends: bool) -> None:
    if not messages:
        raise BadRequest("messages is empty; give at least 1", param="messages")
    if both_ends:
        raise BadRequest(
            "continue_final_message and add_generation_prompt exclude each other", param="continue_final_message"
        )
    if taken := RESERVED & variables.keys():
        raise BadRequest(f"chat_template_kwargs may not set {', '.join(sorted(taken))}", param="chat_template_kwargs")


def _plain(message: Message) -> dict[str, Any]:
    """Without empty fields, which templates show as "None", and with reasoning under the name that they read."""
    plain = {key: value for key, value in message.items() if value is not None}
    reasoning = next((plain[name] for name in _REASONING if name in plain), None)
    return plain if reasoning is None else {"thinking": reasoning, **plain, "reasoning_content": reasoning}


def _marked(message: Message) -> dict[str, Any]:
    """The final message with a mark at its end, to cut the rendered text there."""
    content = message.get("content")
    if isinstance(content, str):
        return {**message, "content": content + _END}
    if isinstance(content, list):
        for index in range(len(content) - 1, -1, -1):
            if isinstance(content[index], dict) and isinstance(content[index].get("text"), str):
                part = {**content[index], "text": content[index]["text"] + _END}
                return {**message, "content": [*content[:index], part, *content[index + 1 :]]}
    raise BadRequest("the final message has no text to continue", param="messages")


def _cut(text: str) -> str:
    at = text.rfind(_END.strip())
    if at < 0:
        raise BadRequest("the model's chat template drops the message to continue", param="messages")
    kept = text[:at]
    # A template that trims the message trimmed the mark's own space, and so what stood before it.
    return kept if text.startswith(_END, at) else kept.rstrip()

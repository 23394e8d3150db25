"""Chat templates: what they may use equals transformers' rendering, and what goes wrong is the request's fault."""

from datetime import datetime
from typing import Any

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from baton_api.errors import BadRequest, SettingError
from baton_engine.text.template import ChatTemplate

USER: dict[str, Any] = {"role": "user", "content": "Grüße <b>&</b>"}
CALL: dict[str, Any] = {
    "role": "assistant",
    "content": None,
    "tool_calls": [{"name": "f", "arguments": {"x": [1, "ü"]}}],
}
THOUGHT: dict[str, Any] = {"role": "assistant", "content": "4", "reasoning": "2 + 2"}
TOOLS: list[Any] = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]

SOURCES = [
    "{% for m in messages %}\n  {% if m.content %}\n{{ m.content | trim }}\n  {% endif %}\n{% endfor %}\n",
    "{% for m in messages %}{{ m.tool_calls | tojson if m.tool_calls is defined else m.content }}{% endfor %}",
    "{{ tools | tojson(indent=2) }}|{{ documents }}|{{ tools is none }}",
    "{% for m in messages %}{% if loop.index > 1 %}{% break %}{% endif %}{{ m.role }}{% endfor %}",
    "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}",
    "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
    "{{ dict(a=1) }}{{ messages | length }}{{ messages[::-1][0].role }}",
    "{% macro show(x) %}<{{ x }}>{% endmacro %}{{ show(bos_token) }}{{ messages[-1]['role'] }}{{ enable_thinking }}",
    "{% for m in messages %}{{ m.reasoning_content }}/{{ m.thinking }};{% endfor %}",
    "{{ messages[0].content.split(' ')[-1] }}{{ add_generation_prompt }}",
]


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("tools", [None, TOOLS])
def test_a_template_renders_as_in_transformers(source: str, tools: list[Any] | None) -> None:
    messages = [USER, CALL, THOUGHT]
    rendered = render_jinja_template(
        conversations=[[{key: value for key, value in m.items() if value is not None} for m in messages]],
        tools=tools,
        chat_template=source,
        add_generation_prompt=True,
        bos_token="<s>",
        enable_thinking=False,
    )
    template = ChatTemplate({"default": source}, {"bos_token": "<s>"})
    assert template.render(messages, tools=tools, variables={"enable_thinking": False}) == rendered[0][0]


@pytest.mark.parametrize(
    "content",
    ["The answer is ", "The answer is", [{"type": "image"}, {"type": "text", "text": "The answer"}, {"x": 1}]],
)
@pytest.mark.parametrize("form", ["c", "c | trim"])
def test_the_final_message_can_be_continued(content: Any, form: str) -> None:
    source = (
        "{% for m in messages %}{% set c = m.content if m.content is string else m.content[1].text %}"
        "<{{ m.role }}>{{ " + form + " }}<end>{% endfor %}"
    )
    messages = [USER, {"role": "assistant", "content": content}]
    rendered = render_jinja_template([messages], chat_template=source, continue_final_message=True)
    template = ChatTemplate({"default": source}, {})
    assert template.render(messages, add_generation_prompt=False, continue_final_message=True) == rendered[0][0]


def test_the_date_is_the_one_given() -> None:
    template = ChatTemplate({"default": "{{ strftime_now('%d %b %Y') }}"}, {}, now=lambda: datetime(2024, 2, 29))
    assert template.render([USER]) == "29 Feb 2024"


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ messages[0].content + 1 }}", "can only concatenate"),
        ("{{ messages[0].nothing.more }}", "has no attribute"),
        ("{{ messages.append(1) }}", "unsafe|access|not safely"),
        ("{{ ''.__class__.__mro__ }}", "unsafe|access"),
    ],
)
def test_whatever_a_template_raises_is_a_bad_request_naming_messages(source: str, words: str) -> None:
    with pytest.raises(BadRequest, match=words) as caught:
        ChatTemplate({"default": source}, {}).render([USER])
    assert caught.value.param == "messages"


@pytest.mark.parametrize(
    ("arguments", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [USER], "variables": {"messages": []}}, "chat_template_kwargs"),
        ({"messages": [USER], "continue_final_message": True}, "continue_final_message"),
        ({"messages": [CALL], "continue_final_message": True, "add_generation_prompt": False}, "messages"),
        ({"messages": [USER], "continue_final_message": True, "add_generation_prompt": False}, "messages"),
        (
            {
                "messages": [{"role": "user", "content": [{"type": "image"}]}],
                "continue_final_message": True,
                "add_generation_prompt": False,
            },
            "messages",
        ),
    ],
)
def test_a_request_that_cannot_be_rendered_is_refused_by_name(arguments: dict[str, Any], param: str) -> None:
    with pytest.raises(BadRequest) as caught:
        ChatTemplate({"default": "nothing of the messages"}, {}).render(**arguments)
    assert caught.value.param == param


@pytest.mark.parametrize(
    ("templates", "words"),
    [
        ({"default": "a\n{% for %}"}, "does not compile, line 2"),
        ({"other": "x"}, r"\['other'\] has no default"),
    ],
)
def test_a_template_that_cannot_work_stops_the_start(templates: dict[str, str], words: str) -> None:
    with pytest.raises(SettingError, match=words):
        ChatTemplate(templates, {})

"""Whatever a body holds, parsing gives a request or a BadRequest, never anything else."""

import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from baton_api.errors import BadRequest
from baton_api.json_body import json_object
from baton_api.openai import parse_chat, parse_completion
from baton_api.openai_fields import CHAT_USED, COMPLETION_USED, INTERNAL

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["user", "text", "m", 10**400, "assistant"])
)
NAMES = st.sampled_from(sorted(CHAT_USED | COMPLETION_USED | INTERNAL | {"tools", "user", "role", "content", "type"}))
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES | st.text(max_size=4), inner, max_size=4)
)
VALID: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "x"}], "prompt": "x"}


def _dump(value: Any) -> bytes:
    try:
        return json.dumps(value).encode("utf-8", "surrogatepass")
    except ValueError:
        return b"{"


@settings(max_examples=400, deadline=None)
@given(st.dictionaries(NAMES | st.text(max_size=6), VALUES, max_size=5), st.booleans())
def test_any_fields_give_a_request_or_a_bad_request(fields: dict[str, Any], internal: bool) -> None:
    for parse, own in ((parse_chat, "messages"), (parse_completion, "prompt")):
        for body in (fields, {"model": "m", own: VALID[own], **fields}):
            try:
                parse(body, internal=internal)
            except BadRequest as error:
                json.dumps(error.body())


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200) | VALUES.map(_dump))
def test_any_bytes_give_an_object_or_a_bad_request(data: bytes) -> None:
    try:
        assert isinstance(json_object(data), dict)
    except BadRequest as error:
        json.dumps(error.body())

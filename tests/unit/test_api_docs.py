"""docs/api.md names every request field there is, under the right heading."""

import re
from pathlib import Path

from baton_api import openai_fields as fields

PAGE = (Path(__file__).parents[2] / "docs" / "api.md").read_text()


def named(heading: str) -> set[str]:
    """The `names` of the list item that begins with this heading."""
    item = re.search(rf"^- \*\*{re.escape(heading)}.*?(?=^- \*\*|^\n|^## )", PAGE, re.M | re.S)
    assert item is not None, heading
    return set(re.findall(r"`([a-z_]+)`", item[0]))


def test_the_page_names_every_field_under_its_heading() -> None:
    assert named("Used by both:") - {"include_usage"} == fields.CHAT_USED & fields.COMPLETION_USED
    assert named("Chat only:") == fields.CHAT_USED - fields.COMPLETION_USED
    assert named("Completions only:") - {"max_tokens"} == fields.COMPLETION_USED - fields.CHAT_USED
    assert named("Accepted, without effect:") == set(fields.IGNORED)
    assert named("Accepted only when they ask for nothing") == set(fields.CHAT_OFF) | set(fields.COMPLETION_OFF)
    assert named("Never from outside:") == set(fields.INTERNAL) | {"traceparent"}

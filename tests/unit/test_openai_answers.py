"""The response objects have OpenAI's shape: the openai package's own models read them."""

from openai.types import Completion
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from baton_api.openai_out import (
    AnswerMeta,
    FinalChoice,
    TokenLogprob,
    chat_chunk,
    chat_final,
    chat_logprobs,
    chat_role_chunk,
    completion_chunk,
    completion_final,
    completion_logprobs,
    usage,
    usage_chunk,
)

META = AnswerMeta("chatcmpl-1", 1700000000, "m")
SPLIT = TokenLogprob("\ufffd", b"\xf0\x9f", -0.5, (TokenLogprob("a", b"a", -0.25), TokenLogprob("b", b"b", -2.0)))


def test_a_chat_stream_begins_with_the_role_and_ends_with_the_usage() -> None:
    sent = [
        chat_role_chunk(META, 0),
        chat_chunk(META, 0, "hi", logprobs=[SPLIT]),
        chat_chunk(META, 0, "", "stop"),
        usage_chunk(META, usage(5, 2, 4), chat=True),
    ]
    chunks = [ChatCompletionChunk.model_validate(chunk, strict=True) for chunk in sent]
    assert chunks[0].choices[0].delta.role == "assistant" and chunks[0].choices[0].delta.content == ""
    assert chunks[1].choices[0].delta.content == "hi" and chunks[1].choices[0].finish_reason is None
    assert sent[2]["choices"][0]["delta"] == {} and chunks[2].choices[0].finish_reason == "stop"
    last = chunks[3].usage
    assert chunks[3].choices == [] and last is not None and last.total_tokens == 7
    assert last.prompt_tokens_details is not None and last.prompt_tokens_details.cached_tokens == 4


def test_a_chunk_without_text_that_is_not_the_last_still_has_content() -> None:
    assert chat_chunk(META, 0, "")["choices"][0]["delta"] == {"content": ""}


def test_chat_logprobs_give_the_bytes_of_a_split_character() -> None:
    answer = ChatCompletion.model_validate(
        chat_final(META, [FinalChoice(0, "x", "length", chat_logprobs([SPLIT]))], usage(1, 1)), strict=True
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None and logprobs.content is not None
    assert logprobs.content[0].bytes == [0xF0, 0x9F]
    assert [(other.token, other.logprob) for other in logprobs.content[0].top_logprobs] == [("a", -0.25), ("b", -2.0)]


def test_a_whole_chat_answer_has_every_choice() -> None:
    answer = ChatCompletion.model_validate(
        chat_final(META, [FinalChoice(0, "a", "stop"), FinalChoice(1, "b", "length")], usage(1, 2))
    )
    assert [(c.index, c.message.content, c.finish_reason) for c in answer.choices] == [
        (0, "a", "stop"),
        (1, "b", "length"),
    ]
    assert answer.choices[0].logprobs is None and answer.usage is not None and answer.usage.completion_tokens == 2


def test_completion_logprobs_are_parallel_lists_with_offsets() -> None:
    second = TokenLogprob("y", b"y", -2.0, (TokenLogprob("z", b"z", -0.5),), text_offset=2)
    entries = (TokenLogprob("he", b"he", -1.0), second)
    answer = Completion.model_validate(
        completion_final(META, [FinalChoice(0, "hey", "stop", completion_logprobs(entries))], usage(1, 2))
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.tokens == ["he", "y"] and logprobs.token_logprobs == [-1.0, -2.0]
    assert logprobs.top_logprobs == [{}, {"z": -0.5}] and logprobs.text_offset == [0, 2]
    chunk = completion_chunk(META, 0, "y", "stop", entries[1:])
    assert chunk["choices"][0]["logprobs"]["text_offset"] == [2] and chunk["object"] == "text_completion"


def test_a_completion_stream_ends_with_the_usage_under_its_own_object_name() -> None:
    assert completion_chunk(META, 0, "x")["choices"][0]["logprobs"] is None
    assert completion_final(META, [FinalChoice(0, "x", "stop")], usage(1, 1))["choices"][0]["logprobs"] is None
    assert usage_chunk(META, usage(1, 1), chat=False)["object"] == "text_completion"

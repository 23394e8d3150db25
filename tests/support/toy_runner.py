"""An in-memory twin of the tensor half whose every token depends on every byte of KV that the sequence may read.

The KV of a token is a hash of the token, its position and the KV before it, as deeper layers' is; a drawn token is a
hash of the context's KV bytes, read through the block table. A wrong, stale or misplaced block changes the output.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from hashlib import blake2b

from baton_api.layout import KvLayout
from baton_api.sampling import SampledToken, SamplingParams
from baton_engine.batch import Draw, Slice

TOKEN_BYTES = 8


class ToyStore:
    """Blocks in one bytearray, filled with garbage at the start."""

    def __init__(self, layout: KvLayout, num_blocks: int) -> None:
        self.layout = layout
        self.num_blocks = num_blocks
        self.memory = bytearray(b"\xa5" * (num_blocks * layout.block_bytes))

    def view(self, block_id: int) -> memoryview:
        size = self.layout.block_bytes
        if not 0 <= block_id < self.num_blocks:
            raise IndexError(block_id)
        return memoryview(self.memory)[block_id * size : (block_id + 1) * size]

    def before_send(self, block_ids: Sequence[int]) -> None:
        """Host memory is the only memory."""

    def after_land(self, block_ids: Sequence[int]) -> None:
        """Host memory is the only memory."""


class ToyRunner:
    """`poison`: a token id that makes run() spoil its slice's KV and raise; it is never
    drawn. `steps`: (tokens, draws) of every run."""

    def __init__(
        self,
        num_blocks: int = 64,
        block_tokens: int = 4,
        max_model_len: int = 256,
        vocab_size: int = 50,
        eos: frozenset[int] = frozenset({0}),
        poison: int | None = None,
    ) -> None:
        self.layout = KvLayout("toy", 1, 1, 1, block_tokens, "float32", "token")
        self.store = ToyStore(self.layout, num_blocks)
        self.max_model_len = max_model_len
        self.vocab_size = vocab_size
        self.eos_token_ids = eos
        self.poison = poison
        self._drawable = vocab_size if poison is None else poison
        self.steps: list[tuple[int, int]] = []

    def run(self, slices: Sequence[Slice]) -> list[list[SampledToken]]:
        self.steps.append((sum(len(part.token_ids) for part in slices), sum(len(part.draws) for part in slices)))
        for part in slices:
            assert part.token_ids, "a slice computes at least one token"
            self._compute(part)
        return [[self._draw(part, draw) for draw in part.draws] for part in slices]

    def copy_blocks(self, pairs: Sequence[tuple[int, int]]) -> None:
        contents = [bytes(self.store.view(source)) for source, _ in pairs]
        for (_, destination), content in zip(pairs, contents, strict=True):
            self.store.view(destination)[:] = content

    def _compute(self, part: Slice) -> None:
        before = bytes(self._token(part.block_ids, part.start - 1)) if part.start else b""
        for position, token_id in enumerate(part.token_ids, part.start):
            if token_id == self.poison:
                for spoilt in range(part.start, part.start + len(part.token_ids)):
                    self._token(part.block_ids, spoilt)[:] = bytes(TOKEN_BYTES)
                raise RuntimeError(f"token {token_id} broke the step")
            before = toy_kv(token_id, position, before)
            self._token(part.block_ids, position)[:] = before

    def _draw(self, part: Slice, draw: Draw) -> SampledToken:
        end = part.start + len(part.token_ids)
        assert end == len(draw.prompt) + len(draw.output), "a draw stands at the end of the tokens so far"
        context = b"".join(bytes(self._token(part.block_ids, position)) for position in range(end))
        return SampledToken(toy_token(context, draw.params, draw.choice, len(draw.output), self._drawable))

    def _token(self, block_ids: Sequence[int], position: int) -> memoryview:
        block, offset = divmod(position, self.layout.block_tokens)
        return self.store.view(block_ids[block])[offset * TOKEN_BYTES : (offset + 1) * TOKEN_BYTES]


def toy_kv(token_id: int, position: int, before: bytes) -> bytes:
    """8 bytes."""
    return blake2b(before + token_id.to_bytes(4, "little") + position.to_bytes(4, "little"), digest_size=8).digest()


def toy_token(context: bytes, params: SamplingParams, choice: int, position: int, vocab_size: int) -> int:
    """Greedy: of the context alone. Otherwise also of (seed, choice, position)."""
    salt = b"" if params.greedy else f"{params.seed}/{choice}/{position}".encode()
    return int.from_bytes(blake2b(context, digest_size=4, key=salt).digest(), "little") % vocab_size


def toy_stream(prompt: Sequence[int], params: SamplingParams, choice: int = 0, vocab_size: int = 50) -> Iterator[int]:
    """The tokens that a model alone in the world would draw, without end: the reference."""
    context, before, position = b"", b"", 0
    pending = list(prompt)
    while True:
        for token_id in pending:
            before = toy_kv(token_id, position, before)
            context += before
            position += 1
        token_id = toy_token(context, params, choice, position - len(prompt), vocab_size)
        yield token_id
        pending = [token_id]


def toy_answer(
    prompt: Sequence[int],
    params: SamplingParams,
    choice: int = 0,
    max_model_len: int = 256,
    eos: frozenset[int] = frozenset({0}),
    vocab_size: int = 50,
) -> tuple[list[int], str]:
    """Tokens and finish reason of one choice, written without the engine's finish rule."""
    output: list[int] = []
    stops = set(params.stop_token_ids) | (set() if params.ignore_eos else set(eos))
    room = max_model_len - len(prompt)
    for token_id in toy_stream(prompt, params, choice, vocab_size):
        output.append(token_id)
        if token_id in stops and len(output) >= params.min_tokens:
            return output, "stop"
        if len(output) == min(room, params.max_tokens or room):
            return output, "length"
    raise AssertionError("the stream has no end")

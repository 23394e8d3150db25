"""Text to token ids and back, from a Hugging Face directory, as transformers' AutoTokenizer does but without it."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers.decoders import ByteLevel
from tokenizers.pre_tokenizers import Metaspace

from baton_api.errors import SettingError
from baton_api.sampling import SamplingParams

from .detokenise import Detokeniser
from .output import ChoiceOutput
from .pieces import PieceCache, cuts_are_safe
from .template import ChatTemplate, load_templates

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # one text at a time: a pool of threads would only idle

_SLICE_CHARS = 16_384
_SEAM_TOKENS = 64  # a cut may cost so many tokens that the whole text does not have
_BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")
_METASPACE = "\u2581"


class Tokenizer:
    """Thread-safe: encode and decode may be called from several threads, and let other threads run meanwhile."""

    def __init__(self, backend: tokenizers.Tokenizer, config: Mapping[str, Any], eos: frozenset[int]) -> None:
        self._backend = backend
        self.special_tokens = dict(_named_tokens(config))
        self.special_ids = frozenset(
            token_id for token_id, token in backend.get_added_tokens_decoder().items() if token.special
        )
        named_eos = backend.token_to_id(self.special_tokens.get("eos_token", ""))
        self.eos_token_ids = eos | (frozenset({named_eos}) if named_eos is not None else frozenset())
        self._added = {token_id: token.content for token_id, token in backend.get_added_tokens_decoder().items()}
        self._byte_level = _is_byte_level(backend)

    @classmethod
    def load(cls, folder: Path) -> Tokenizer:
        """Reads tokenizer.json, tokenizer_config.json, special_tokens_map.json and generation_config.json; all but the
        first may be missing. Raises SettingError when a file is missing or malformed."""
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise SettingError("model", str(folder), "has no tokenizer.json", "convert its tokenizer to that form")
        try:
            backend = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:
            raise SettingError("model", str(path), f"is malformed: {error}", "mend or download it again") from error
        config = load_config(folder)
        _prepare(backend, config)
        eos = _read(folder / "generation_config.json").get("eos_token_id")
        return cls(backend, config, frozenset([eos] if isinstance(eos, int) else eos or ()))

    @property
    def vocab_size(self) -> int:
        """Token ids that have a text, added ones included; a model's own vocabulary may be padded beyond it."""
        return int(self._backend.get_vocab_size(with_added_tokens=True))

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """With special tokens for a plain prompt; without for a rendered chat template, which has its own."""
        return self._encode_many([text], add_special_tokens=add_special_tokens)[0]

    def _encode_many(self, texts: list[str], *, add_special_tokens: bool = False) -> list[list[int]]:
        # Not `encode`: that keeps the interpreter's lock, and works out offsets too, for 1.4 times the CPU.
        encoded = self._backend.encode_batch_fast(texts, add_special_tokens=add_special_tokens)
        return [one.ids for one in encoded]

    def at_least(self, text: str, enough: int) -> int:
        """How many tokens `text` has at least, special ones left out; counted only until it is more than `enough`.

        In slices: the whole text at once would take 120 times its size in memory.
        """
        count = 0
        for start in range(0, len(text), _SLICE_CHARS):
            piece = self._backend.encode_batch_fast([text[start : start + _SLICE_CHARS]], add_special_tokens=False)
            count += max(0, len(piece[0]) - _SEAM_TOKENS)
            if count > enough:
                break
        return count

    def piece_cache(self, max_bytes: int) -> PieceCache | None:
        """Remembers pieces of rendered chats (no special tokens added); None for a tokenizer that cannot be cut."""
        if not cuts_are_safe(self._backend.to_str()):
            return None
        return PieceCache(self._encode_many, max_bytes)

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        text: str = self._backend.decode(token_ids, skip_special_tokens=skip_special_tokens)
        return text

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that one token stands for, possibly part of a character; none for an id without a token."""
        if token_id in self._added:
            return self._added[token_id].encode()
        token = self._backend.id_to_token(token_id)
        if token is None:
            return b""
        if self._byte_level:
            return b"".join(_BYTE_OF.get(character) or character.encode() for character in token)
        if byte := _BYTE_TOKEN.fullmatch(token):
            return bytes.fromhex(byte[1])
        return str(token).replace(_METASPACE, " ").encode()

    def choice_output(self, sampling: SamplingParams, prompt: Sequence[int] = ()) -> ChoiceOutput:
        """The output side of one choice that follows `prompt`."""
        decode = partial(self.decode, skip_special_tokens=sampling.skip_special_tokens)
        hidden = self.special_ids if sampling.skip_special_tokens else frozenset()
        return ChoiceOutput(sampling, Detokeniser(decode, prompt), self.token_bytes, hidden)


def load_config(folder: Path) -> dict[str, Any]:
    """tokenizer_config.json, completed by special_tokens_map.json."""
    return {**_read(folder / "special_tokens_map.json"), **_read(folder / "tokenizer_config.json")}


def load_chat_template(folder: Path) -> ChatTemplate | None:
    """The model's chat template, or None when it has none."""
    config = load_config(folder)
    templates = load_templates(folder, config)
    return ChatTemplate(templates, dict(_named_tokens(config))) if templates else None


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise SettingError("model", str(path), f"is not JSON: {error}", "mend or download it again") from error
    if not isinstance(content, dict):
        raise SettingError("model", str(path), "is not a JSON object", "mend or download it again")
    return content


def _named_tokens(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """("bos_token", "<s>"), ...: what templates may name."""
    for name, value in config.items():
        text = value.get("content") if isinstance(value, Mapping) else value
        if name.endswith("_token") and isinstance(text, str):
            yield name, text


def _prepare(backend: tokenizers.Tokenizer, config: Mapping[str, Any]) -> None:
    """What transformers does to the backend after loading it (`TokenizersBackend.__init__`, version 5): tokens that
    only the configuration knows are added; `add_bos_token` and `add_eos_token` are ignored, as tokenizer.json says."""
    backend.no_truncation()
    backend.no_padding()
    if str(config.get("tokenizer_class")).removesuffix("Fast") == "LlamaTokenizer" and not _is_byte_level(backend):
        # transformers builds this class's pipeline itself; it differs from most files after special tokens.
        backend.normalizer = None
        scheme = "always" if config.get("legacy") else "first"
        backend.pre_tokenizer = Metaspace(
            _METASPACE, prepend_scheme=scheme if config.get("add_prefix_space", True) else "never", split=False
        )
    known = {token.content for token in backend.get_added_tokens_decoder().values()}
    for token in _configured_tokens(config):
        if token.content not in known:
            backend.add_special_tokens([token]) if token.special else backend.add_tokens([token])
            known.add(token.content)


def _is_byte_level(backend: tokenizers.Tokenizer) -> bool:
    return isinstance(backend.decoder, ByteLevel)


def _configured_tokens(config: Mapping[str, Any]) -> Iterator[tokenizers.AddedToken]:
    rows = config.get("added_tokens_decoder") or {}
    for _, row in sorted(rows.items(), key=lambda item: int(item[0])):
        yield _added_token(row)
    for _, text in _named_tokens(config):
        yield tokenizers.AddedToken(text, special=True, normalized=False)
    for field in ("additional_special_tokens", "extra_special_tokens"):
        extra = config.get(field) or ()
        for row in extra.values() if isinstance(extra, Mapping) else extra:
            yield _added_token(row, special=True)


def _added_token(row: Any, special: bool = False) -> tokenizers.AddedToken:
    if isinstance(row, str):
        return tokenizers.AddedToken(row, special=True, normalized=False)
    flags = {name: bool(row[name]) for name in ("single_word", "lstrip", "rstrip", "normalized") if name in row}
    return tokenizers.AddedToken(row["content"], special=special or bool(row.get("special")), **flags)


def _bytes_of_characters() -> dict[str, bytes]:
    """GPT-2's reversible map of bytes to printable characters (`bytes_to_unicode`), turned round."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("\u00a1"), ord("\u00ac") + 1)]
    printable += range(ord("\u00ae"), ord("\u00ff") + 1)
    others = [byte for byte in range(256) if byte not in printable]
    characters = {chr(byte): bytes([byte]) for byte in printable}
    return characters | {chr(256 + index): bytes([byte]) for index, byte in enumerate(others)}


_BYTE_OF = _bytes_of_characters()

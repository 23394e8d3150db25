"""Settings and resource specs: frozen dataclasses parsed strictly from plain data. Pure.

A field is declared with `setting(default, ...)`: its limits, choices and description live with it, so that parsing,
`--help`, the CRD's schema and the error message all come from one place. A wrong value stops the start with a
SettingError that names field, value, limit and fix. Settings files spell fields as Python does; resources spell them in
camelCase (`spell=camel_case`), and then every path in an error does too.
"""

from __future__ import annotations

import dataclasses
import functools
import re
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass
from typing import Any, TypeVar

from .errors import SettingError

T = TypeVar("T")
Spelling = Callable[[str], str]
_RULE = "baton.rule"


@dataclass(frozen=True, slots=True)
class Rule:
    """Limits of one field; `description` also goes into the CRD's schema.

    `pattern` is the whole text's, in what Python (ASCII) and RE2 have in common. Of a list or mapping, `pattern` is
    that of each item or value, `keys` that of each key and `most` how many there may be. `longest` is in characters.
    """

    description: str
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()
    pattern: str | None = None
    keys: str | None = None
    most: int | None = None
    longest: int | None = None


def setting(
    default: Any = MISSING,
    description: str = "",
    *,
    low: float | None = None,
    high: float | None = None,
    choices: tuple[str, ...] = (),
    pattern: str | None = None,
    keys: str | None = None,
    most: int | None = None,
    longest: int | None = None,
    factory: Any = MISSING,
) -> Any:
    """A dataclass field with its rule. Without default and factory the field is required."""
    rule = Rule(description, low, high, choices, pattern, keys, most, longest)
    return dataclasses.field(default=default, default_factory=factory, metadata={_RULE: rule})


def rule_of(field: dataclasses.Field[Any]) -> Rule:
    rule: Rule = field.metadata.get(_RULE, Rule(""))
    return rule


def camel_case(name: str) -> str:
    """`max_batched_tokens` as `maxBatchedTokens`."""
    first, *rest = name.split("_")
    return first + "".join(word.capitalize() for word in rest)


def parse(cls: type[T], raw: Any, path: str = "", spell: Spelling = str) -> T:
    """`raw` (plain JSON-like data) as a `cls`, nested dataclasses, lists, tuples and mappings included.

    `spell` says how a field of `cls` is written in `raw`. A null is the same as leaving the field out.
    Raises SettingError for an unknown or missing field, a wrong type, a value outside its limits.
    """
    if not isinstance(raw, Mapping):
        raise SettingError(path or cls.__name__, raw, "is not a mapping", "write it as `field: value` pairs")
    fields = {spell(field.name): field for field in dataclasses.fields(cls) if field.init}  # type: ignore[arg-type]
    for name in raw:
        if name not in fields:
            raise SettingError(
                _join(path, str(name)[:100]), raw[name], "is not a known field", f"use one of {sorted(fields)}"
            )
    hints = _hints(cls)  # type: ignore[arg-type]
    values: dict[str, Any] = {}
    for name, field in fields.items():
        where = _join(path, name)
        if name in raw and raw[name] is not None:
            values[field.name] = _value(hints[field.name], raw[name], where, spell)
            _check(rule_of(field), values[field.name], where)
        elif field.default is MISSING and field.default_factory is MISSING:
            raise SettingError(where, None, "is missing", rule_of(field).description or "give it a value")
    return cls(**values)


_hints = functools.cache(typing.get_type_hints)
"""Evaluating them anew was most of what a Model's parsing cost."""


def members(hint: Any) -> tuple[Any, ...]:
    """The types a field may have, None left out: `int | None` is (int,), `int | str` is (int, str)."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return tuple(arg for arg in typing.get_args(hint) if arg is not type(None))
    return (hint,)


def _value(hint: Any, raw: Any, where: str, spell: Spelling) -> Any:
    hint, *others = members(hint)
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if others:
        return _scalar((hint, *others), raw, where)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return parse(hint, raw, where, spell)
    if origin is tuple:
        if not isinstance(raw, list | tuple):
            raise SettingError(where, raw, "is not a list", "write it as a list")
        return tuple(_value(args[0], item, f"{where}[{i}]", spell) for i, item in enumerate(raw))
    if origin in (dict, Mapping):
        if not isinstance(raw, Mapping):
            raise SettingError(where, raw, "is not a mapping", "write it as `name: value` pairs")
        return {str(key): _value(args[1], item, f"{where}.{key}", spell) for key, item in raw.items()}
    return _scalar((hint,), raw, where)


def _scalar(hints: tuple[Any, ...], raw: Any, where: str) -> Any:
    if Any in hints:
        return raw
    if float in hints and isinstance(raw, int) and not isinstance(raw, bool):
        return _float(raw, where)
    if (isinstance(raw, bool) and bool not in hints) or not isinstance(raw, hints):
        wanted = " or ".join(hint.__name__ for hint in hints)
        raise SettingError(where, raw, f"is {type(raw).__name__}", f"give a {wanted}")
    return raw


def _float(raw: int, where: str) -> float:
    try:
        return float(raw)
    except OverflowError as error:
        raise SettingError(where, f"an integer of {raw.bit_length()} bits", "is no float", "use less") from error


def _check(rule: Rule, value: Any, where: str) -> None:
    if isinstance(value, tuple | Mapping):
        _check_items(rule, value, where)
        return
    if rule.choices and value not in rule.choices:
        raise SettingError(where, value, "is not allowed", f"use one of {', '.join(rule.choices)}")
    if rule.low is not None and not value >= rule.low:
        raise SettingError(where, value, f"is below {rule.low:g}", f"use {rule.low:g} or more")
    if rule.high is not None and not value <= rule.high:
        raise SettingError(where, value, f"is above {rule.high:g}", f"use {rule.high:g} or less")
    _match(rule, rule.pattern, value, where)


def _check_items(rule: Rule, items: tuple[Any, ...] | Mapping[str, Any], where: str) -> None:
    if rule.most is not None and len(items) > rule.most:
        raise SettingError(where, len(items), "items are too many", f"use {rule.most} or fewer")
    if isinstance(items, Mapping):
        for key, value in items.items():
            _match(rule, rule.keys, key, _join(where, key))
            _match(rule, rule.pattern, value, _join(where, key))
    else:
        for index, value in enumerate(items):
            _match(rule, rule.pattern, value, f"{where}[{index}]")


def _match(rule: Rule, pattern: str | None, value: Any, where: str) -> None:
    """A number where text or number may stand has no pattern to match, as in a schema."""
    if rule.longest is not None and isinstance(value, str) and len(value) > rule.longest:
        raise SettingError(where, f"{value[:40]}...", f"has {len(value)} characters", f"use {rule.longest} or fewer")
    if pattern is not None and isinstance(value, str) and re.fullmatch(pattern, value, re.ASCII) is None:
        raise SettingError(where, value, f"does not match {pattern}", rule.description or "write it so")


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name

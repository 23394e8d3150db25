"""Settings and resource specs: frozen dataclasses parsed strictly from plain data. Pure.

A field is declared with `setting(default, ...)`: its limits, choices and description live with it, so that parsing,
`--help`, the CRD's schema and the error message all come from one place. A wrong value stops the start with a
SettingError that names field, value, limit and fix.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, dataclass
from typing import Any, TypeVar

from .errors import SettingError

T = TypeVar("T")
_RULE = "baton.rule"


@dataclass(frozen=True, slots=True)
class Rule:
    """Limits of one field; `description` also goes into the CRD's schema."""

    description: str
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()
    pattern: str | None = None


def setting(
    default: Any = MISSING,
    description: str = "",
    *,
    low: float | None = None,
    high: float | None = None,
    choices: tuple[str, ...] = (),
    pattern: str | None = None,
    factory: Any = MISSING,
) -> Any:
    """A dataclass field with its rule. Without default and factory the field is required."""
    rule = Rule(description, low, high, choices, pattern)
    return dataclasses.field(default=default, default_factory=factory, metadata={_RULE: rule})


def rule_of(field: dataclasses.Field[Any]) -> Rule:
    rule: Rule = field.metadata.get(_RULE, Rule(""))
    return rule


def parse(cls: type[T], raw: Any, path: str = "") -> T:
    """`raw` (plain JSON-like data) as a `cls`, nested dataclasses, lists, tuples and mappings included.

    Raises SettingError for an unknown or missing field, a wrong type, a value outside its limits.
    """
    if not isinstance(raw, Mapping):
        raise SettingError(path or cls.__name__, raw, "is not a mapping", "write it as `field: value` pairs")
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}  # type: ignore[arg-type]
    for name in raw:
        if name not in fields:
            raise SettingError(
                _join(path, str(name)), raw[name], "is not a known field", f"use one of {sorted(fields)}"
            )
    hints = typing.get_type_hints(cls)
    values: dict[str, Any] = {}
    for name, field in fields.items():
        where = _join(path, name)
        if name in raw and raw[name] is not None:
            values[name] = _value(hints[name], raw[name], where)
            _check(rule_of(field), values[name], where)
        elif field.default is MISSING and field.default_factory is MISSING:
            raise SettingError(where, None, "is missing", rule_of(field).description or "give it a value")
    return cls(**values)


def _value(hint: Any, raw: Any, where: str) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return _value(next(arg for arg in args if arg is not type(None)), raw, where)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return parse(hint, raw, where)
    if origin is tuple:
        if not isinstance(raw, list | tuple):
            raise SettingError(where, raw, "is not a list", "write it as a list")
        return tuple(_value(args[0], item, f"{where}[{i}]") for i, item in enumerate(raw))
    if origin in (dict, Mapping):
        if not isinstance(raw, Mapping):
            raise SettingError(where, raw, "is not a mapping", "write it as `name: value` pairs")
        return {str(key): _value(args[1], item, f"{where}.{key}") for key, item in raw.items()}
    return _scalar(hint, raw, where)


def _scalar(hint: Any, raw: Any, where: str) -> Any:
    if hint is Any:
        return raw
    if hint is float and isinstance(raw, int) and not isinstance(raw, bool):
        return float(raw)
    if (isinstance(raw, bool) and hint is not bool) or not isinstance(raw, hint):
        raise SettingError(where, raw, f"is {type(raw).__name__}", f"give a {hint.__name__}")
    return raw


def _check(rule: Rule, value: Any, where: str) -> None:
    if rule.choices and value not in rule.choices:
        raise SettingError(where, value, "is not allowed", f"use one of {', '.join(rule.choices)}")
    if rule.low is not None and not value >= rule.low:
        raise SettingError(where, value, f"is below {rule.low:g}", f"use {rule.low:g} or more")
    if rule.high is not None and not value <= rule.high:
        raise SettingError(where, value, f"is above {rule.high:g}", f"use {rule.high:g} or less")


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name

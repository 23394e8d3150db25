"""Kubernetes quantities ("500m", "16Gi", 2) as exact numbers, so that they can be compared by value. Pure.

Source: k8s.io/apimachinery, pkg/api/resource/quantity.go: a decimal number, then a suffix or an exponent.
"""

from __future__ import annotations

import re
from fractions import Fraction

from .errors import SettingError

QUANTITY = r"[0-9]{1,18}(\.[0-9]{1,9})?(m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei|[eE][0-9])?"
"""What Baton takes: no sign, no "n" or "u", a leading digit: the intersection of what everybody writes."""
_ANY = re.compile(r"([+-]?[0-9]*\.?[0-9]*)(?:([KMGTPE]i)|([numkMGTPE]?)|[eE]([+-]?[0-9]{1,3}))", re.ASCII)
_DECIMAL = {"n": -9, "u": -6, "m": -3, "": 0, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15, "E": 18}
_BINARY = {"Ki": 10, "Mi": 20, "Gi": 30, "Ti": 40, "Pi": 50, "Ei": 60}


def quantity(text: str | int) -> Fraction:
    """The value of any quantity the API server may answer with. Raises SettingError for what is none."""
    found = _ANY.fullmatch(str(text))
    if found is None or not re.search("[0-9]", found[1]):
        raise SettingError("quantity", text, "is no quantity", 'write a number with a suffix, such as "500m" or "16Gi"')
    number, binary, decimal, exponent = found.groups()
    if binary:
        return Fraction(number) * (1 << _BINARY[binary])
    power = int(exponent) if exponent else _DECIMAL[decimal or ""]
    return Fraction(number) * Fraction(f"1e{power}")

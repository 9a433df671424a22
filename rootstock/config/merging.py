"""Merges the values given to a run over those of params.yaml, key by key at every level."""

from collections.abc import Mapping
from typing import Any

Values = Mapping[str, Any]


def merged(base: Values, given: Values) -> dict[str, Any]:
    """Return `base` with the given values in place of its own.

    A list is one value. A null never changes a value: the form sends it for a field that was not touched.

    Args:
        base: all sections, as plain values.
        given: some keys of some sections; unknown keys are kept, so that validation can refuse them by name.
    """
    result = dict(base)
    for key, value in given.items():
        old = base.get(key)
        if value is None and key in base:
            continue
        result[key] = merged(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return result


def ignored(base: Values, given: Values, prefix: str = "") -> dict[str, Any]:
    """Return the keys whose given null was ignored, with the value that stays: {"backbone.image_size": 96}."""
    found: dict[str, Any] = {}
    for key, value in given.items():
        old = base.get(key)
        if value is None and old is not None:
            found[prefix + key] = old
        elif isinstance(old, Mapping) and isinstance(value, Mapping):
            found |= ignored(old, value, f"{prefix}{key}.")
    return found

"""Values given to a run over those of params.yaml: key by key, at every depth."""

from collections.abc import Mapping
from typing import Any

Values = Mapping[str, Any]


def merged(base: Values, given: Values) -> dict[str, Any]:
    """Put what is given in the place of what is there; what is not given stays.

    A list is one value. A null never changes a value: it is what a form sends for a field that nobody has touched.

    Args:
        base: all sections, as plain values.
        given: some keys of some sections; what `base` does not know stays in, to be refused by name.
    """
    result = dict(base)
    for key, value in given.items():
        old = base.get(key)
        if value is None and key in base:
            continue
        result[key] = merged(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return result


def ignored(base: Values, given: Values, prefix: str = "") -> dict[str, Any]:
    """List the keys for which a null was given and a value stays: {"backbone.image_size": 96}."""
    found: dict[str, Any] = {}
    for key, value in given.items():
        old = base.get(key)
        if value is None and old is not None:
            found[prefix + key] = old
        elif isinstance(old, Mapping) and isinstance(value, Mapping):
            found |= ignored(old, value, f"{prefix}{key}.")
    return found

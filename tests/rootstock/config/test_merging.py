"""Values given to a run override those of params.yaml."""

from typing import Any

from hypothesis import given, strategies as st

from rootstock.config.merging import ignored, merged
from rootstock.config.params import Params

KEYS = ["a", "b", "c"]
scalars = st.none() | st.integers(0, 3) | st.text("xy", max_size=2) | st.lists(st.integers(0, 3), max_size=2)
trees = st.recursive(
    st.dictionaries(st.sampled_from(KEYS), scalars),
    lambda inner: st.dictionaries(st.sampled_from(KEYS), scalars | inner),
)


def paths(tree: dict[str, Any], prefix: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    """Every leaf by the way to it; an empty section has none."""
    found: dict[tuple[str, ...], Any] = {}
    for key, value in tree.items():
        found |= paths(value, (*prefix, key)) if isinstance(value, dict) else {(*prefix, key): value}
    return found


def at(tree: Any, path: tuple[str, ...]) -> Any:
    for key in path:
        tree = tree[key]
    return tree


def known(given_: dict[str, Any], base: dict[str, Any]) -> dict[str, Any]:
    """The part of what is given that has the shape of the base: sections where it has sections, values where values."""
    part = {}
    for key, value in given_.items():
        old = base.get(key)
        if key in base and isinstance(old, dict) == isinstance(value, dict):
            part[key] = known(value, old) if isinstance(value, dict) else value
    return part


@given(base=trees, asked=trees)
def test_given_values_are_set_and_all_others_stay_the_same(base, asked):
    asked = known(asked, base)
    result = merged(base, asked)
    given_values = {path: value for path, value in paths(asked).items() if value is not None}
    for path, value in paths(base).items():
        assert at(result, path) == given_values.get(path, value)
    assert paths(result).keys() == paths(base).keys()


@given(base=trees, asked=trees)
def test_a_null_changes_nothing_and_is_reported_where_there_is_a_value(base, asked):
    asked = known(asked, base)
    nulls = {path for path, value in paths(asked).items() if value is None and at(base, path) is not None}
    assert {tuple(key.split(".")) for key in ignored(base, asked)} == nulls
    assert all(at(base, tuple(key.split("."))) == value for key, value in ignored(base, asked).items())


@given(base=trees)
def test_nothing_given_changes_nothing(base):
    assert merged(base, {}) == base


def test_a_list_is_replaced_as_a_whole_and_unknown_keys_are_left_to_validation():
    assert merged({"a": [1, 2]}, {"a": [3]}) == {"a": [3]}
    assert merged({"a": {"b": 1}}, {"a": {"x": None}, "y": 2}) == {"a": {"b": 1, "x": None}, "y": 2}


def test_every_key_of_the_parameters_can_be_given_alone():
    sources = [{"path": "photos", "domain": "garden", "name": None}]
    base = Params.model_validate({"ingest": {"sources": sources}}).model_dump(mode="json")
    for path, value in paths(base).items():
        asked: Any = value
        for key in reversed(path):
            asked = {key: asked}
        assert Params.model_validate(merged(base, asked)) == Params.model_validate(base)

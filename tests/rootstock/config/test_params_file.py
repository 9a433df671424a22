"""params.yaml as a file: what is not YAML is refused in a sentence; saving changes only the lines that differ."""

import itertools
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st

from rootstock.config.architectures import NAMES
from rootstock.config.merging import merged
from rootstock.config.params import Params
from rootstock.config.params_file import load, save, validate
from rootstock.system.errors import ParamsError
from rootstock.system.redaction import kind_of_secret
from tests.params_yaml import SHIPPED, error_of

# Reading


@pytest.mark.parametrize(
    ("text", "part"), [("seed: [", "not valid YAML"), ("seed: 1\nseed: 2", "duplicate key"), ("a: b: c", "line 1")]
)
def test_invalid_yaml_is_refused_with_its_position(file, text, part):
    message = error_of(file, text)
    assert message.startswith(f"{file}: not valid YAML: ") and part in message


LONG = 5000 * "9"


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (f"seed: {LONG}", "a value cannot be read (Exceeds the limit (4300 digits)"),
        (f"seed: 0x{LONG}", "seed is a number with thousands of digits; expected"),
        (f"seed: {4000 * '9'}", "seed is 999"),
        (f"head: {{l2: [{4000 * '9'}]}}", "head.l2[0] is 999"),
        (f"seed: '{LONG}'", "expected a whole number"),
        ("head: " + 5000 * "[", "not valid YAML"),
        ("head: " + 100_000 * "[" + 100_000 * "]", "nested more than 50 levels deep"),
        (100_000 * "- " + "x", "nested more than 50 levels deep"),
        ("seed: !!timestamp 2024-99-99", "not valid YAML"),
        ("seed: !!int x", "not valid YAML"),
        ("seed: !!float x", "not valid YAML"),
        ("seed: !!python/object/apply:os.system [true]", "not valid YAML"),
        ("seed: 2024-99-99", "not valid YAML: a value cannot be read"),
        ("seed: 1\0", "not valid YAML"),
        ("seed: &a [*a]", "seed is a list; expected a whole number"),
        ("head: &a {l2: *a}", "expected a list"),
        ("a: &a [1,1]\nb: &b [*a,*a]\n" + "\n".join(f"{chr(c + 1)}: &{chr(c + 1)} [{(9 * f'*{chr(c)},')}]"
         for c in range(98, 121)), "unknown key a"),
        ("seed: 1\nseed: 2", "duplicate key"),
        ("seed: 'a\ud800'".encode("utf-8", "surrogatepass"), "not valid YAML"),
        ("seed: é".encode("latin-1"), "not valid YAML"),
        ("seed: x".encode("utf-16"), "seed is 'x'"),
        ("seed: x".encode("utf-32"), "not valid YAML"),
        (b"\x89PNG\r\n", "not valid YAML"),
        ("- a", "the file is a list"),
        ("seed", "the file is 'seed'"),
        ("backbone: {weights: \"\\uD800\"}", "not valid YAML"),
        ("ingest: {sources: [{path: \"a\\0b\", domain: x}]}", "ingest.sources[0].path: contains a control character"),
    ],
    ids=itertools.count(),
)  # fmt: skip
def test_any_invalid_file_is_refused_in_a_short_message(file, content, part):
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ParamsError) as error:
        load(file)
    assert part in str(error.value)
    assert len(str(error.value)) < 8000


def test_a_file_that_cannot_be_read_is_an_error_that_names_it(tmp_path):
    with pytest.raises(ParamsError, match=r"nowhere\.yaml: not found"):
        load(tmp_path / "nowhere.yaml")
    with pytest.raises(ParamsError, match="cannot be read: Is a directory"):
        load(tmp_path)
    (tmp_path / "binary.yaml").write_bytes(b"seed: \xff\xfe")
    with pytest.raises(ParamsError, match="not valid YAML"):
        load(tmp_path / "binary.yaml")


# Saving


numbers = st.floats(1e-12, 1e12)
# Whatever fits on a line: ruamel.yaml does not read back every control character and line separator that it writes.
characters = st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"])
texts = st.text(characters, min_size=1, max_size=20).filter(lambda text: "://" not in text)
splits = st.tuples(st.floats(0.01, 0.49), st.floats(0.01, 0.49)).map(lambda pair: {"val": pair[0], "test": pair[1]})
stages = st.fixed_dictionaries(
    {"unfreeze": texts, "epochs": st.integers(1, 10**6), "lr": st.floats(1e-12, 0.999999)},
)
addresses = texts.filter(lambda text: ":" not in text and not kind_of_secret(text))
valid = st.fixed_dictionaries(
    {
        "ingest": st.fixed_dictionaries(
            {
                "sources": st.lists(
                    st.fixed_dictionaries({"path": addresses, "domain": texts, "name": texts}),
                    min_size=1, max_size=4, unique_by=lambda source: source["name"],
                ),
            },
            optional={
                "split": splits,
                "max_side": st.none() | st.integers(32, 10**6),
                "max_megapixels": numbers,
                "allow_shrink": st.booleans(),
            },
        ),
    },
    optional={
        "seed": st.integers(0, 2**32 - 1),
        "backbone": st.fixed_dictionaries(
            {},
            optional={
                "name": st.sampled_from(NAMES),
                "weights": addresses,
                "image_size": st.none() | st.integers(16, 1024),
                "crop_fraction": st.none() | st.floats(0.01, 1),
            },
        ),
        "head": st.fixed_dictionaries({}, optional={"l2": st.lists(numbers, min_size=1, max_size=6)}),
        "finetune": st.fixed_dictionaries(
            {},
            optional={
                "stages": st.lists(stages, max_size=4),
                "augment": st.sampled_from(("none", "crop", "crop_flip", "randaugment")),
                "weight_decay": st.just(0) | numbers,
            },
        ),
    },
).map(Params.model_validate)  # fmt: skip


@given(first=valid, second=valid)
@settings(max_examples=40, deadline=None)
def test_saved_parameters_are_read_back_whatever_the_file_contained_before(tmp_path_factory, first, second):
    file = tmp_path_factory.getbasetemp() / "round-trip.yaml"
    file.write_text(SHIPPED.read_text())
    for wanted in (first, second, load(SHIPPED)):
        save(file, wanted)
        assert load(file) == wanted
    file.unlink()
    save(file, second)
    assert load(file) == second


def test_parameters_without_sources_as_in_a_hand_off_are_saved_and_read_back(tmp_path):
    file = tmp_path / "params.yaml"
    save(file, Params(seed=3))
    assert load(file) == Params(seed=3)


def changed(file: Path, **sections: dict) -> dict[str, str]:
    """Save a copy of the shipped file with some values changed; returns the lines that differ, old to new."""
    before = SHIPPED.read_text().splitlines()
    file.write_text(SHIPPED.read_text())
    given = load(file).model_dump()
    for name, values in sections.items():
        given[name] |= values
    save(file, Params.model_validate(given))
    after = file.read_text().splitlines()
    assert len(after) == len(before)
    return {old.strip(): new.strip() for old, new in zip(before, after, strict=True) if old != new}


def test_saving_adds_and_removes_entries_of_a_mapping(file):
    file.write_text("ingest:\n  sources:\n    - path: p  # mine\n      domain: d\n      splits: {a: train, b: test}\n")
    params = load(file)
    source = params.ingest.sources[0].model_copy(update={"splits": {"b": "test", "c": "train"}})
    changed = params.model_copy(update={"ingest": params.ingest.model_copy(update={"sources": (source,)})})
    save(file, changed)
    assert load(file) == changed
    assert "path: p  # mine" in file.read_text()


def test_saving_changes_only_the_lines_of_changed_values_and_keeps_their_comments(file):
    assert changed(file) == {}
    assert changed(file, backbone={"name": "resnet34"}) == {"name: efficientnet_lite0": "name: resnet34"}
    assert changed(file, finetune={"weight_decay": 0.1}) == {"weight_decay: 0.01": "weight_decay: 0.1"}
    [(old, new)] = changed(file, ingest={"max_side": 512}).items()
    assert old.partition("#")[2] == new.partition("#")[2] and new.startswith("max_side: 512 #")
    [(old, new)] = changed(file, head={"l2": [10, 1]}).items()
    assert old.partition("#")[2] == new.partition("#")[2] and new.startswith("l2: [10.0, 1.0] ")


def test_saving_keeps_every_digit_of_an_unchanged_number(file):
    file.write_text("finetune:\n  weight_decay: 5.960464477539063e-08\n  layer_decay: 9e-1\n")
    save(file, load(file).model_copy(update={"seed": 3}))
    assert file.read_text() == "finetune:\n  weight_decay: 5.960464477539063e-08\n  layer_decay: 9e-1\nseed: 3\n"


def test_saving_adds_no_key_that_has_its_default(file):
    text = "# mine\nhead:\n  max_iterations: 7  # enough\n"
    file.write_text(text)
    save(file, load(file))
    assert file.read_text() == text
    save(file, load(file).model_copy(update={"seed": 3}))
    assert file.read_text() == f"{text}seed: 3\n"


def test_saving_a_longer_or_shorter_list_keeps_the_comments_of_the_entries_that_stay(file):
    file.write_text(
        "ingest: {sources: [{path: photos, domain: field}]}\n"
        "finetune:\n  stages:\n    - unfreeze: head  # first\n      epochs: 1\n      lr: 0.1\n"
        "    - unfreeze: all  # then\n      epochs: 2\n      lr: 0.01\n"
    )
    given = load(file).model_dump()
    given["finetune"]["stages"] = [*given["finetune"]["stages"], {"unfreeze": "all", "epochs": 3, "lr": 0.001}]
    save(file, Params.model_validate(given))
    assert "head  # first" in file.read_text() and "all  # then" in file.read_text()
    given["finetune"]["stages"] = given["finetune"]["stages"][:1]
    save(file, Params.model_validate(given))
    assert "head  # first" in file.read_text() and "then" not in file.read_text()
    assert len(load(file).finetune.stages) == 1


def test_a_former_key_is_replaced_when_its_value_changes_and_may_be_given_to_a_run(file):
    file.write_text("ingest:\n  sources: [{path: photos, domain: field}]\n  seconds_a_file: 3.0\n  shard_mb: 1\n")
    given = load(file).model_dump()
    given["ingest"]["shard_mb"] = 2
    save(file, Params.model_validate(given))
    assert "  seconds_a_file: 3.0\n  shard_mb: 2" in file.read_text()  # only what differs is written
    given["ingest"]["max_decode_seconds"] = 4.0
    save(file, Params.model_validate(given))
    assert load(file).ingest.max_decode_seconds == 4 and "seconds_a_file" not in file.read_text()
    over = merged(load(file).model_dump(), {"ingest": {"seconds_a_file": 5}})
    assert validate(over, "the run").ingest.max_decode_seconds == 5
    untouched = merged(load(file).model_dump(), {"ingest": {"seconds_a_file": None}})
    assert validate(untouched, "the run").ingest.max_decode_seconds == 4

"""Which models were measured on which test images: a log of this machine."""

import json
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings, strategies as st

from rootstock.evaluation import measured_models


def test_an_image_is_unseen_until_another_model_has_been_measured_on_it(tmp_path):
    log = tmp_path / "local" / "delivered.json"
    assert measured_models.first_measured(log, ["a", "b"], "first") == {"a", "b"}
    assert measured_models.first_measured(log, ["a", "b"], "first") == {"a", "b"}  # a run that was killed, again
    assert measured_models.first_measured(log, ["a", "b", "c"], "second") == {"c"}
    assert measured_models.first_measured(log, ["a", "b", "c"], "third") == set()


def test_images_that_a_champion_was_trained_with_leave_the_log(tmp_path):
    log = tmp_path / "delivered.json"
    measured_models.first_measured(log, ["a", "b"], "first")
    assert measured_models.first_measured(log, ["c"], "second") == {"c"}
    assert "a" not in log.read_text()


@pytest.mark.parametrize("contents", ["", "{", "\0\0"])
def test_a_damaged_log_is_begun_anew(tmp_path, contents):
    log = tmp_path / "delivered.json"
    log.write_text(contents)
    assert measured_models.first_measured(log, ["a"], "model") == {"a"}
    log.write_text(contents)
    assert measured_models.count(log, ["a"], "model") == 1


def test_models_are_counted_image_by_image_so_that_a_few_new_images_hide_none(tmp_path):
    log, images = tmp_path / "local" / "measured.parquet", [f"{number:02d}" for number in range(20)]
    assert [measured_models.count(log, images, model) for model in ("a", "b", "b", "c")] == [1, 2, 2, 3]
    more = [*images, "new"]
    assert measured_models.count(log, more, "d") == 4
    assert measured_models.count(log, ["new"], "d") == 1
    assert measured_models.count(log, more, "a") == 4  # which was measured on the others before
    assert measured_models.count(log, ["new"], "d") == 2
    assert measured_models.count(log, [*images[:5], *(f"new-{number}" for number in range(6))], "e") == 1
    assert measured_models.count(log, images, "e") == 5
    assert measured_models.count(log, [], "e") == 1


def test_a_model_is_counted_on_images_that_others_were_measured_on_before_it(tmp_path):
    log, old, new = tmp_path / "measured.parquet", ["a", "b"], ["c", "d", "e"]
    assert measured_models.count(log, old, "first") == 1
    assert measured_models.count(log, old + new, "second") == 1
    assert measured_models.count(log, old + new, "first") == 2
    assert measured_models.count(log, new, "third") == 3


@given(st.lists(st.tuples(st.sets(st.sampled_from("abcdefgh"), min_size=1), st.sampled_from("uvwxyz")), max_size=12))
@settings(deadline=None, max_examples=30)
def test_the_count_is_that_of_pairs_of_image_and_model(measured):
    pairs = set()
    with TemporaryDirectory() as folder:
        for images, model in measured:
            pairs |= {(image, model) for image in images}
            found = measured_models.count(Path(folder) / "measured.parquet", sorted(images), model)
            numbers = sorted(sum(image == other for other, _ in pairs) for image in images)
            assert found == numbers[len(numbers) // 2]


def test_the_log_of_an_earlier_version_which_only_counted_is_read(tmp_path):
    log = tmp_path / "measured.parquet"
    table = pa.table({"image_id": ["a", "b", "c"], "models": [3, 3, 1]})
    pq.write_table(table.replace_schema_metadata({b"models": json.dumps(["x", "y", "z"]).encode()}), log)
    assert measured_models.count(log, ["a", "b"], "z") == 3
    assert measured_models.count(log, ["a", "b"], "new") == 4
    assert measured_models.count(log, ["c"], "z") == 1

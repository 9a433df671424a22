"""Which models were measured on which test images: a log of this machine."""

import pytest

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
    assert measured_models.count(log, [*images[:5], *(f"new-{number}" for number in range(6))], "e") == 1
    assert measured_models.count(log, images, "e") == 4  # on most of them, d was the last
    assert measured_models.count(log, [], "e") == 1

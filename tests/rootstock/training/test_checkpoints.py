"""Interrupted fine-tuning resumes from its checkpoint, and ends with the same bytes."""

from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from rootstock.system import progress
from rootstock.training import checkpoints, classifier, finetune, stages as stage_module
from rootstock.training.checkpoints import Epoch
from rootstock.training.classifier import Classifier
from rootstock.training.course import as_table
from tests.fine_tuning import MNASNET, SHUFFLENET, SQUEEZENET, TRAIN, changed, copied, stages, start, tune


class StoppedError(Exception):
    """Simulates the end of a run."""


@contextmanager
def stopping_after(images: int):
    """Report progress to a caller that stops the run after a number of images."""

    @contextmanager
    def reporter(what: str, total: int, unit: str):
        done = 0

        def advance(n: int, *, skip: int = 0) -> None:
            nonlocal done
            done += n + skip
            if done > images:
                raise StoppedError

        yield advance

    with progress.report_to(reporter):
        yield


SLOW = pytest.param(SHUFFLENET, 2 * TRAIN + 40, marks=pytest.mark.slow)
TWO_STAGES = stages(("last_block", 2), ("all", 2), augment="crop_flip", batch_size=16, layer_decay=0.9)


def result(model: Classifier, history: list[Epoch], folder: Path) -> tuple[bytes, bytes]:
    """Return the bytes of the stage's output."""
    classifier.save(model, folder / "model.safetensors")
    as_table(history, Epoch).to_parquet(folder / "history.parquet", index=False)
    return (folder / "model.safetensors").read_bytes(), (folder / "history.parquet").read_bytes()


@pytest.mark.parametrize(
    ("name", "stops"),
    [
        pytest.param(SHUFFLENET, [TRAIN + 20], marks=pytest.mark.slow),  # in the second epoch of the first stage
        (SHUFFLENET, [2 * TRAIN, 3 * TRAIN + 1]),  # between the stages, then in the last epoch
        pytest.param(MNASNET, [TRAIN], marks=pytest.mark.slow),  # between the epochs of the first stage
        (SQUEEZENET, [10, 3 * TRAIN]),  # before anything is done, then after the first epoch of the second stage
    ],
)
def test_an_interrupted_run_ends_with_the_bytes_of_an_uninterrupted_one(base, tmp_path, name, stops):
    undisturbed = start(base, name)
    expected = result(undisturbed, tune(undisturbed, base, TWO_STAGES, tmp_path / "undisturbed"), tmp_path)
    for stop in stops:
        with stopping_after(stop), pytest.raises(StoppedError):
            tune(start(base, name), base, TWO_STAGES, tmp_path / "stopped")
    resumed, trained = start(base, name), []
    resumed.register_forward_hook(lambda module, given, logits: trained.append(len(logits) * module.training))
    assert result(resumed, tune(resumed, base, TWO_STAGES, tmp_path / "stopped"), tmp_path) == expected
    assert sum(trained) == 4 * TRAIN - stops[-1] // TRAIN * TRAIN  # whole epochs are not done again


def test_a_finished_run_is_not_trained_again_while_its_checkpoint_exists(base, tmp_path):
    first, again = start(base), start(base)
    history = tune(first, base, stages(("last_block", 1)), tmp_path / "checkpoint")
    again.register_forward_hook(lambda *_: pytest.fail("an image was shown"))
    assert tune(again, base, stages(("last_block", 1)), tmp_path / "checkpoint") == history
    assert not changed(copied(first), again)


def test_a_checkpoint_of_other_inputs_is_ignored(base, tmp_path):
    expected = start(base)
    history = tune(expected, base, stages(("last_block", 1)), tmp_path / "one", inputs="these")
    with stopping_after(TRAIN), suppress(StoppedError):
        tune(start(base), base, stages(("all", 3)), tmp_path / "two", inputs="others")
    assert (tmp_path / "two").exists()
    model = start(base)
    assert tune(model, base, stages(("last_block", 1)), tmp_path / "two", inputs="these") == history
    assert not changed(copied(expected), model)


def test_progress_is_counted_in_images_and_resumes_with_the_run(base, tmp_path):
    with stopping_after(TRAIN), suppress(StoppedError):
        tune(start(base), base, stages(("last_block", 2)), tmp_path / "checkpoint")
    tallies = []

    @contextmanager
    def reporter(what: str, total: int, unit: str):
        tallies.append(progress.Tally(what, total, unit))
        yield tallies[-1].add

    with progress.report_to(reporter):
        tune(start(base), base, stages(("last_block", 2)), tmp_path / "checkpoint")
    tally = tallies[0]
    assert (tally.what, tally.total, tally.unit) == ("fine_tune", 2 * TRAIN, "images")
    assert (tally.done, tally.skipped) == (2 * TRAIN, TRAIN)


@pytest.mark.parametrize(("name", "stop"), [(SQUEEZENET, 50), SLOW])
def test_a_killed_run_loses_no_more_than_the_time_between_checkpoints_within_an_epoch(base, tmp_path, name, stop):
    """Also with dropout: the random generators go on where they were."""
    undisturbed = start(base, name)
    expected = result(undisturbed, tune(undisturbed, base, TWO_STAGES, tmp_path / "undisturbed"), tmp_path)
    often = TWO_STAGES.model_copy(update={"checkpoint_minutes": 0})  # after each step
    with stopping_after(stop), pytest.raises(StoppedError):
        tune(start(base, name), base, often, tmp_path / "stopped")
    resumed, trained = start(base, name), []
    resumed.register_forward_hook(lambda module, given, logits: trained.append(len(logits) * module.training))
    assert result(resumed, tune(resumed, base, often, tmp_path / "stopped"), tmp_path) == expected
    assert sum(trained) <= 4 * TRAIN - stop + 2 * often.batch_size


def test_a_recipe_does_not_depend_on_how_often_checkpoints_are_written():
    often = TWO_STAGES.model_copy(update={"checkpoint_minutes": 0})
    assert often.recipe() == TWO_STAGES.recipe()


def test_of_short_epochs_the_last_of_a_stage_has_a_checkpoint(base, tmp_path, monkeypatch):
    saved = []
    save = finetune.checkpoints.save
    monkeypatch.setattr(stage_module, "CHECKPOINT_S", 3600.0)
    monkeypatch.setattr(
        finetune.checkpoints,
        "save",
        lambda path, key, state, model: (saved.append((state.stage, state.epoch)), save(path, key, state, model)),
    )
    settings = stages(("last_block", 4), ("all", 1))
    history = tune(start(base), base, settings, tmp_path / "checkpoint")
    assert saved == [(0, 4), (1, 1)]
    assert tune(start(base), base, settings, tmp_path / "checkpoint") == history and len(saved) == 2


def test_writing_takes_at_most_a_tenth_of_the_time(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(checkpoints.time, "monotonic", lambda: now[0])

    def takes_ten_seconds() -> None:
        now[0] += 10

    saver = checkpoints.Saver(takes_ten_seconds)
    now[0] = 19
    assert not saver.is_due(20) and saver.is_due(0)
    now[0] = 20
    assert saver.is_due(20)
    saver()
    now[0] = 30 + 89
    assert not saver.is_due(20) and saver.is_due(0)
    now[0] = 30 + 90
    assert saver.is_due(20)

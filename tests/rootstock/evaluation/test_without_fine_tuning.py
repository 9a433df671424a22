"""Evaluation where nothing was fine-tuned (`finetune.stages: []`): the model is the head on frozen features."""

import dataclasses
import json
import re

import pyarrow.parquet as pq
import pytest

from rootstock.system.files import sha256
from rootstock.training.checkpoints import Epoch
from rootstock.training.course import DESCRIPTION, HISTORY, Course, as_table, load_course, save_course
from tests.evaluations import Done, run
from tests.small_dataset import (
    classifier_from,
    small_backbone,
    small_head,
)


@pytest.fixture(scope="module")
def untuned(inputs, base, tmp_path_factory) -> Done:
    """An evaluation of what `finetune.stages: []` leaves."""
    folder = tmp_path_factory.mktemp("untuned")
    save_course(None, Course(), folder / "finetuned")
    return run(dataclasses.replace(inputs, finetuned=folder / "finetuned"), folder)


def test_the_model_is_the_head_and_all_texts_say_so(untuned):
    assert untuned.found.choice.winner == "head" and list(untuned.found.validation) == ["head"]
    card, page = (untuned.model / "README.md").read_text(), (untuned.report / "report.html").read_text()
    for text in (card, page):
        assert "Nothing was fine-tuned, so the model is the head on frozen features" in text
        assert not re.search("fine-tuned (network|model)", text, re.IGNORECASE)
    assert "Fine-tuned" not in page
    schema = pq.read_schema(untuned.report / "predictions.parquet")
    assert not [name for name in schema.names if name.startswith("finetuned")] and "head" in schema.names


def test_no_image_is_decoded_or_goes_through_a_network(inputs, work, tmp_path):
    save_course(None, Course(), tmp_path / "finetuned")
    run(dataclasses.replace(inputs, finetuned=tmp_path / "finetuned"), tmp_path)
    assert work.images == (0, 0)


def test_the_output_of_an_earlier_version_is_read(inputs, untuned, base, tmp_path):
    network = classifier_from(small_head(base), small_backbone(base))
    save_course(network, load_course(inputs.finetuned), tmp_path / "finetuned")
    as_table([], Epoch).to_parquet(tmp_path / "finetuned" / HISTORY, index=False)  # and the weights of the head
    described = json.loads((tmp_path / "finetuned" / DESCRIPTION).read_text())
    described["digests"][HISTORY] = sha256(tmp_path / "finetuned" / HISTORY)
    (tmp_path / "finetuned" / DESCRIPTION).write_text(json.dumps(described))
    assert run(dataclasses.replace(inputs, finetuned=tmp_path / "finetuned"), tmp_path).found == untuned.found

"""Evaluation where nothing was fine-tuned (`finetune.stages: []`): the model is the head on frozen features."""

import dataclasses
import json
import re

import pyarrow.parquet as pq
import pytest

from rootstock.system.files import sha256
from rootstock.training import epochs, finetune
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
    finetune.save(None, finetune.Course(), folder / "finetuned")
    return run(dataclasses.replace(inputs, finetuned=folder / "finetuned"), folder)


def test_the_model_is_the_head_and_all_texts_say_so(untuned):
    assert untuned.found.choice.winner == "head" and list(untuned.found.validation) == ["head"]
    card, page = (untuned.model / "README.md").read_text(), (untuned.report / "report.html").read_text()
    for text in (card, page):
        assert "Nothing was fine-tuned, so the model is the head on frozen features" in text
        assert not re.search("fine-tuned (network|model)", text, re.IGNORECASE)
    assert "Fine-tuned" not in page
    schema = pq.read_schema(untuned.report / "predictions.parquet")
    assert schema.names == ["image_id", "domain", "split", "label", "head"]


def test_no_image_is_decoded_or_goes_through_a_network(inputs, work, tmp_path):
    finetune.save(None, finetune.Course(), tmp_path / "finetuned")
    run(dataclasses.replace(inputs, finetuned=tmp_path / "finetuned"), tmp_path)
    assert work.images == (0, 0)


def test_the_output_of_an_earlier_version_is_read(inputs, untuned, base, tmp_path):
    network = classifier_from(small_head(base), small_backbone(base))
    finetune.save(network, finetune.load_course(inputs.finetuned), tmp_path / "finetuned")
    epochs.write_history([], tmp_path / "finetuned" / finetune.HISTORY)  # and the weights of the head
    described = json.loads((tmp_path / "finetuned" / finetune.DESCRIPTION).read_text())
    described["digests"][finetune.HISTORY] = sha256(tmp_path / "finetuned" / finetune.HISTORY)
    (tmp_path / "finetuned" / finetune.DESCRIPTION).write_text(json.dumps(described))
    assert run(dataclasses.replace(inputs, finetuned=tmp_path / "finetuned"), tmp_path).found == untuned.found

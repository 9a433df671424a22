"""Drift of unlabelled images, which to label first, and that no other file is written."""

import base64
import io
import json
import shutil
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings as options, strategies as st
from PIL import Image, ImageOps

import rootstock
from rootstock.config.params import Evaluate, Params, Retrain
from rootstock.evaluation import drift, evaluate
from rootstock.evaluation.evaluate import Inputs
from rootstock.evaluation.two_sample import interval, tell_apart
from rootstock.ingest import inbox
from rootstock.training.course import Course, save_course
from tests.small_dataset import (
    CLASSES,
    picture,
    small_backbone,
    small_dataset,
    small_features,
    small_head,
)

PARAMS = Params(evaluate=Evaluate(label_issues=0, learning_curve=False, explain=False), retrain=Retrain(drift_auc=0.7))


@pytest.fixture(scope="module")
def champion(base, tmp_path_factory):
    """The folder of a head."""
    small, folder = small_dataset(base), tmp_path_factory.mktemp("champion")
    save_course(None, Course(), folder / "finetuned")
    folders = (small_backbone(base), small_features(base).parent, small_head(base), folder / "finetuned")
    evaluate.evaluate(Inputs(small.images, small.dataset, *folders), PARAMS, folder / "m", folder / "r", list)
    return folder / "m"


@pytest.fixture
def score(base, champion, tmp_path):
    """Return a function that scores the inbox: a Drift per domain, and the list."""

    def scored(champion=champion, group=None) -> tuple[dict[str, drift.Drift], pd.DataFrame]:
        small, to_label = small_dataset(base), tmp_path / "to_label.csv"
        unlabelled = inbox.list_delivery(str(tmp_path / "inbox"), 0, group=group).unlabelled
        found = drift.score(
            unlabelled, small_backbone(base), small_features(base).parent, small.dataset, champion, PARAMS, to_label
        )
        return {one.domain: one for one in found}, pd.read_csv(to_label, keep_default_na=False)

    return scored


def arrive(tmp_path, domain: str, images: int, change=lambda image: image, first: int = 1000) -> None:
    folder = tmp_path / "inbox" / domain / "_unlabelled"
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(images):
        change(picture(CLASSES[number % 3], first + number)).save(folder / f"{number:03d}.png")


def test_images_like_the_training_images_have_not_drifted_and_others_have(score, tmp_path):
    arrive(tmp_path, "studio", 40)
    arrive(tmp_path, "night", 40, lambda image: image.point(lambda value: value // 6))
    found, table = score()
    same, other = found["studio"], found["night"]
    assert same.auc["low"] <= 0.5 + 0.1 and not same.drifted
    assert same.against == "studio"
    assert other.auc["low"] > 0.7 and other.drifted
    assert other.against == "all domains"
    assert (
        "night: 40 unlabelled; significant drift from the training images of all domains: domain classifier AUC"
        in other.describe()
    )
    novelty = table.groupby("domain")["novelty"].mean()
    assert novelty["night"] > novelty["studio"]


def test_every_usable_image_is_listed_least_certain_first(score, tmp_path):
    arrive(tmp_path, "studio", 30)
    folder = tmp_path / "inbox" / "studio" / "_unlabelled"
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    picture(CLASSES[0], 0).save(folder / "known.png")  # a training image's or another split's very bytes
    (folder / "notes.txt").write_text("no image")
    found, table = score()
    assert (found["studio"].images, found["studio"].rejected, found["studio"].known) == (30, 2, 1)
    assert len(table) == 30
    alone = table[table["like"] == ""]
    assert alone["margin"].is_monotonic_increasing
    assert table["path"].str.fullmatch(r"studio/_unlabelled/\d{3}\.png").all()
    assert set(table["predicted"]) <= set(CLASSES)
    assert table["confidence"].between(1 / 3, 1).all()


def test_one_of_several_similar_images_is_listed_first_and_the_others_last(score, tmp_path):
    arrive(tmp_path, "studio", 24)
    folder = tmp_path / "inbox" / "studio" / "_unlabelled"
    for copy in range(3):
        picture(CLASSES[0], 1000).point(lambda value, copy=copy: min(255, value + copy + 1)).save(
            folder / f"like{copy}.png"
        )
    _, table = score()
    last = table.tail(3)
    assert (last["like"] != "").all()
    assert (table.head(len(table) - 3)["like"] == "").all()
    assert set(last["path"].str[-7:]) | set(last["like"].str[-7:]) == {"000.png", "ke0.png", "ke1.png", "ke2.png"}


@pytest.mark.parametrize(("scenes", "enough"), [(6, False), (25, True)])
def test_images_of_a_group_count_once_and_each_has_a_novelty_of_its_own(score, tmp_path, scenes, enough):
    arrive(tmp_path, "night", 50, lambda image: image.point(lambda value: value // 6))
    for path in sorted((tmp_path / "inbox" / "night" / "_unlabelled").iterdir()):
        path.rename(path.with_name(f"scene{int(path.stem) % scenes}_{path.name}"))
    found, table = score(group=r"(?P<group>scene\d+)_")
    assert (found["night"].auc is not None) == enough
    assert enough or "too few distinct images or groups" in found["night"].describe()
    assert not enough or table["novelty"].nunique() > scenes


def test_too_few_images_are_reported_and_none_is_not_an_error(score, tmp_path):
    arrive(tmp_path, "few", 5)
    (tmp_path / "inbox" / "none" / "_unlabelled").mkdir(parents=True)
    (tmp_path / "inbox" / "none" / "_unlabelled" / "broken.png").write_bytes(b"x")
    found, table = score()
    assert found["few"].auc is None and not found["few"].drifted
    assert "too few distinct images or groups to test for drift (at least 20)" in found["few"].describe()
    assert (found["none"].images, found["none"].rejected) == (0, 1)
    assert len(table) == 5


def test_the_same_images_give_the_same_list_and_no_other_file(score, base, tmp_path):
    arrive(tmp_path, "studio", 25, ImageOps.invert)
    small = small_dataset(base)
    folders = (small.images, small_features(base))
    kept = {path: path.read_bytes() for folder in folders for path in folder.iterdir()}
    score()
    first = (tmp_path / "to_label.csv").read_bytes()
    score()
    assert (tmp_path / "to_label.csv").read_bytes() == first
    assert {
        path: path.read_bytes() for folder in (small.images, small_features(base)) for path in folder.iterdir()
    } == kept


def test_the_first_images_are_shown_and_are_tasks_of_label_studio(score, tmp_path):
    arrive(tmp_path, "studio", 24)
    _, table = score()
    tasks = json.loads((tmp_path / "to_label.json").read_text())
    assert [task["data"]["path"] for task in tasks] == table.loc[table["like"] == "", "path"].tolist()
    assert [task["predictions"][0]["result"][0]["value"]["choices"] for task in tasks] == [
        [label] for label in table.loc[table["like"] == "", "predicted"]
    ]
    encoded = tasks[0]["data"]["image"].partition(",")[2]
    shown = Image.open(io.BytesIO(base64.b64decode(encoded)))
    assert shown.format == "WEBP" and shown.width > picture(CLASSES[0], 0).width  # small ones are enlarged
    interface = ElementTree.parse(tmp_path / "to_label.xml")
    assert [choice.get("value") for choice in interface.iter("Choice")] == CLASSES
    page = (tmp_path / "to_label.html").read_text()
    assert page.count("<li>") == len(tasks) and all(task["data"]["path"] in page for task in tasks)


def test_without_unlabelled_images_the_page_says_so(score, tmp_path):
    score()
    assert "There are no images to label" in (tmp_path / "to_label.html").read_text()
    assert json.loads((tmp_path / "to_label.json").read_text()) == []


def test_an_image_is_decoded_and_computed_once_for_drift_and_champion(score, work, champion, tmp_path):
    arrive(tmp_path, "studio", 25)
    _, table = score()
    assert work.images == (25, 25)
    read = rootstock.load_model(champion)
    for row in table.itertuples():
        [prediction] = read.predict(tmp_path / "inbox" / row.path)
        assert prediction.label == row.predicted
        assert max(prediction.probabilities.values()) == pytest.approx(row.confidence, abs=1e-5)


def test_a_champion_with_other_features_computes_them_from_the_same_decoded_images(score, work, champion, tmp_path):
    arrive(tmp_path, "studio", 25)
    _, expected = score()
    shutil.copytree(champion, tmp_path / "tuned")
    path = tmp_path / "tuned" / "model.json"
    path.write_text(path.read_text().replace('"kind": "head"', '"kind": "finetuned"'))
    work.decoded.clear(), work.computed.clear()
    _, table = score(tmp_path / "tuned")
    assert work.images == (25, 50)
    figures = ["confidence", "entropy", "margin"]
    pd.testing.assert_frame_equal(table.drop(columns=figures), expected.drop(columns=figures))
    np.testing.assert_allclose(table[figures], expected[figures], atol=1e-4)


@given(auc=st.floats(0, 1), m=st.integers(5, 3000), n=st.integers(5, 3000))
def test_an_interval_contains_its_auc_and_is_mirrored_when_the_samples_are_swapped(auc, m, n):
    ends, mirrored = interval(auc, m, n), interval(1 - auc, m, n)
    assert 0 <= ends["low"] <= ends["value"] + 1e-6 <= ends["high"] + 2e-6 <= 1 + 2e-6
    assert ends["low"] == pytest.approx(1 - mirrored["high"], abs=2e-6)


@options(max_examples=5)
@given(seed=st.integers(0, 2**32 - 1))
def test_samples_of_one_distribution_are_rarely_told_apart_and_of_two_always(seed):
    random = np.random.default_rng(seed)
    one, other = random.normal(size=(2, 60, 200)).astype(np.float32)
    assert tell_apart(one, other, 0)[0]["low"] < 0.62
    assert tell_apart(one + 1, other, 0)[0]["low"] > 0.8


def test_the_interval_without_drift_contains_one_half_about_as_often_as_stated():
    random, held = np.random.default_rng(0), 0
    for _ in range(60):
        one, other = random.normal(size=(40, 30)), random.normal(size=(60, 30))
        ends = tell_apart(one.astype(np.float32), other.astype(np.float32), 0)[0]
        held += ends["low"] <= 0.5 <= ends["high"]
    assert held >= 52  # 95 % of 60 are 57; below 52 once in 100 times

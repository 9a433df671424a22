"""Which older domains have too few test images for any decision, before anything is trained."""

import pandas as pd
import pytest

from rootstock.config.params import Params
from rootstock.evaluation import challenge
from rootstock.model import model
from tasks.bridge import verdict


def lacking(monkeypatch: pytest.MonkeyPatch, *images: tuple[str, str, int], wrong: tuple[int, ...] = ()) -> str:
    """Describe what is lacking with a number of images of each domain and split, every one in its own group.

    The champion has them right, but for some of them.
    """
    rows = [(domain, split) for domain, split, count in images for _ in range(count)]
    manifest = pd.DataFrame(rows, columns=["domain", "split"]).assign(label="ant", class_index=0)
    manifest["group_id"] = manifest["image_id"] = [f"{number:04}" for number in range(len(manifest))]
    monkeypatch.setattr(verdict.tables, "load_manifest", lambda _: manifest)
    monkeypatch.setattr(model, "describe", lambda _: {"classes": ["ant", "bee"], "kind": "head"})
    answers = {image: "ant" for number, image in enumerate(manifest["image_id"]) if number not in wrong}
    monkeypatch.setattr(challenge, "_stored_labels", lambda *_: answers)
    params = Params.model_validate({"ingest": {"sources": [{"path": "photos", "domain": "old"}]}})
    return verdict.find_lacking_images(params, ("new",))


def test_an_older_domain_may_have_no_test_images_at_all(monkeypatch):
    enough = [("old", "train", 400), ("old", "test", 90), ("new", "train", 30)]
    assert lacking(monkeypatch, *enough) == ""
    assert lacking(monkeypatch, *enough, ("rare", "train", 5)) == "about 65 more test images of rare (it has none)"


def test_a_single_image_is_counted_as_such(monkeypatch):
    assert lacking(monkeypatch, ("old", "train", 9), ("old", "test", 64)) == (
        "about 1 more test image of old (it has 64)"
    )


def test_where_the_champion_is_wrong_a_challenger_may_show_more_with_the_same_images(monkeypatch):
    images = [("old", "train", 9), ("old", "test", 50)]
    assert lacking(monkeypatch, *images) == "about 15 more test images of old (it has 50)"
    assert lacking(monkeypatch, *images, wrong=tuple(range(9, 19))) == ""  # 20 % of them: it may gain 20 points
    assert lacking(monkeypatch, *images, wrong=(0, 1, 2)) == "about 15 more test images of old (it has 50)"  # of train

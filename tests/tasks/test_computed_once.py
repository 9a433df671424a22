"""What is computed once and kept aside: decoded images are there for the next fine-tuning, the cache lists them."""

import sys
from contextlib import chdir
from pathlib import Path

import pytest

from flows import cache as cache_command
from rootstock.config.params import Cache, Evaluate, Finetune, Params, Stage
from rootstock.dataset import tables
from rootstock.features.cache import format_bytes
from rootstock.images import loader
from tasks import evaluate
from tasks.bridge import cache
from tasks.bridge.cache import Request
from tasks.bridge.workspace import ACTIVATIONS, BACKBONE, DATASET, FEATURES, HEAD, IMAGES, PIXELS
from tasks.fine_tune import fine_tune
from tests.small_dataset import small_backbone, small_dataset, small_features, small_head
from tests.workspace import ROOT


@pytest.fixture
def here(tmp_path_factory, tmp_path) -> Path:
    """A folder with the outputs of the stages before fine-tuning, and the parameters."""
    base = tmp_path_factory.getbasetemp()
    small = small_dataset(base)
    there = {
        IMAGES: small.images, DATASET: small.dataset, BACKBONE: small_backbone(base),
        FEATURES: small_features(base).parent, HEAD: small_head(base),
    }  # fmt: skip
    with chdir(tmp_path):
        for path, target in there.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.symlink_to(target)
        Path("params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
        yield tmp_path


@pytest.fixture
def decoded(monkeypatch) -> list[None]:
    """An entry for each image that is decoded for a network."""
    found, view = list[None](), loader.view
    monkeypatch.setattr(loader, "view", lambda *given: (found.append(None), view(*given))[1])
    return found


def params_of(lr: float, pixels_gb: float) -> Params:
    finetune = Finetune(stages=(Stage(unfreeze="head", epochs=1, lr=lr),))
    return Params(finetune=finetune, cache=Cache(pixels_gb=pixels_gb), evaluate=Evaluate(explain=False, label_issues=0))


@pytest.mark.parametrize("pixels_gb", [1.0, 0.0])
def test_training_and_validation_images_are_decoded_once_for_all_runs_where_they_may_be_kept(here, decoded, pixels_gb):
    images, counts = tables.load_manifest(DATASET)["split"].value_counts(), []
    for lr in (1e-3, 2e-3):
        fine_tune(params_of(lr, pixels_gb))
        counts.append(len(decoded))
    both = images["train"] + images["val"]
    assert counts == ([both, both] if pixels_gb else [both, 2 * both])


def test_an_evaluation_reads_what_fine_tuning_has_decoded(here):
    given = params_of(1e-3, 1.0)
    fine_tune(given)
    rows = tables.load_manifest(DATASET)
    with evaluate._decoded(given) as store:
        there = [store.get(*place) is not None for place in zip(rows["shard"], rows["offset"], strict=True)]
    assert there == [split != "test" for split in rows["split"]]
    with evaluate._decoded(Params(finetune=Finetune(stages=()))) as store:
        assert store is None  # nothing will be decoded


# flows.cache

KEPT = {
    PIXELS: ("decoded images", "--pixels", 2_500),
    ACTIVATIONS: ("activations of frozen layers", "--activations", 71),
}


@pytest.fixture
def kept(here) -> None:
    """Decoded images and activations, some files of which are in folders below."""
    for folder, (_, _, size) in KEPT.items():
        (folder / "one").mkdir(parents=True)
        (folder / "one" / "0.values").write_bytes(bytes(size - 20))
        (folder / "0.npy").write_bytes(bytes(20))


def command(monkeypatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["cache", *arguments])
    cache_command.main()


def test_decoded_images_and_activations_are_listed_with_their_sizes(kept, monkeypatch, capsys):
    command(monkeypatch)
    shown = capsys.readouterr().out.splitlines()
    assert f"{PIXELS}: 2.5 kB, decoded images, on this machine only" in shown
    assert f"{ACTIVATIONS}: 71 bytes, activations of frozen layers, on this machine only" in shown


@pytest.mark.parametrize("folder", KEPT)
def test_each_is_removed_alone_if_asked_for_and_named_before(kept, monkeypatch, capsys, folder):
    what, option, size = KEPT[folder]
    before = {path for path in Path().rglob("*") if path.is_file()}
    command(monkeypatch, option, "--dry-run")
    amount = format_bytes(size)
    assert capsys.readouterr().out.splitlines() == ["To be removed:", f"- {amount} of {what}"]
    assert {path for path in Path().rglob("*") if path.is_file()} == before
    done: list[str] = []
    # The flow itself needs a server: tests/flows/test_tidy.py
    monkeypatch.setattr(cache_command, "tidy", lambda asked, verbose: done.append(cache.tidy(Request(**asked)).summary))
    command(monkeypatch, option)
    assert done == [f"{amount} of {what} removed"]
    assert not folder.exists()
    assert {path for path in Path().rglob("*") if path.is_file()} == {p for p in before if folder not in p.parents}
    shown = capsys.readouterr().out
    assert -1 < shown.find(f"- {amount} of {what}") < shown.find(f"{folder}: 0 bytes, {what}")


def test_both_are_removed_together(kept):
    assert cache.tidy(Request(pixels=True, activations=True)).summary == (
        "2.5 kB of decoded images removed; 71 bytes of activations of frozen layers removed"
    )
    assert not any(folder.exists() for folder in KEPT)
    assert cache.tidy(Request()).summary == "Nothing to do"

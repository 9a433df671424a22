"""Extraction: each image goes through the backbone once, even if runs are interrupted."""

import dataclasses
import shutil
import subprocess
import sys
from collections import Counter
from contextlib import nullcontext
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from rootstock.backbones import backbones
from rootstock.config.params import Extract
from rootstock.dataset import shards
from rootstock.features import engines, feature_keys, preparing, reader
from rootstock.features.extraction import extract
from rootstock.images import pixel_store
from rootstock.images.loader import Normalise, prepare
from rootstock.system import progress
from rootstock.system.errors import ParamsError
from rootstock.training import head, logistic
from tests.small_dataset import CLASSES, EAGER, draw, ingested, small_backbone


@pytest.fixture
def seen(backbone) -> list[int]:
    """The sizes of the batches that the backbone has computed."""
    sizes: list[int] = []
    backbone.network.register_forward_hook(lambda network, given, features: sizes.append(len(features)))
    return sizes


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def identities(folder: Path) -> dict[str, tuple[int, int]]:
    """Identify files by inode and time: an unchanged one has not been rewritten."""
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in folder.glob("*.parquet")}


def test_a_feature_is_the_output_of_the_backbone_for_the_image(small, folder, backbone):
    row = small.manifest.iloc[77]
    with shards.Reader(small.images) as reader:
        pixels = prepare(reader.read(row["shard"], row["offset"], row["size"]), backbone.transform)
    with torch.inference_mode():
        shown = Normalise(backbone.transform)(torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None])
        expected = backbone.network(shown)[0].numpy()
    table = pd.read_parquet(folder / f"{row['shard']}.parquet").set_index("image_id")
    np.testing.assert_allclose(table.loc[row["image_id"], "feature"], expected, rtol=1e-3, atol=1e-3)
    assert expected.std() > 0


# Pixels for fine-tuning


def test_pixels_that_extraction_decodes_are_kept_for_fine_tuning_and_not_decoded_again(
    small, backbone, tmp_path, monkeypatch
):
    transform, names = backbone.transform, shards.names(small.images)
    plain, first, again = (tmp_path / name for name in ("plain", "first", "again"))
    extract(backbone, EAGER, small.images, plain)
    with pixel_store.opened(tmp_path / "pixels", transform, small.images, names, most_gb=1) as pixels:
        done = extract(backbone, EAGER, small.images, first, pixels=partial(nullcontext, pixels))
        assert contents(first / done.key) == contents(plain / done.key)
        with shards.Reader(small.images) as reader:
            for row in small.manifest.iloc[::10].itertuples():
                decoded = prepare(reader.read(row.shard, row.offset, row.size), transform)
                assert np.array_equal(pixels.get(row.shard, row.offset), decoded)
        monkeypatch.setattr(preparing, "prepare", lambda *_: pytest.fail("an image was decoded again"))
        extract(backbone, EAGER, small.images, again, pixels=partial(nullcontext, pixels))
        assert contents(again / done.key) == contents(first / done.key)


@pytest.mark.parametrize("others", [{"decode": "reduced"}, {"views": 1, "view_augment": "crop"}])
def test_pixels_that_are_not_those_of_fine_tuning_are_not_kept(small, backbone, tmp_path, others):
    settings, names = EAGER.model_copy(update=others), shards.names(small.images)
    with pixel_store.opened(tmp_path / "pixels", backbone.transform, small.images, names, most_gb=1) as pixels:
        extract(backbone, settings, small.images, tmp_path / "features", pixels=partial(nullcontext, pixels))
        row = small.manifest.iloc[0]
        kept = pixels.get(row["shard"], row["offset"])
    if "decode" in others:
        assert kept is None
    else:  # of the plain view
        with shards.Reader(small.images) as reader:
            decoded = prepare(reader.read(row["shard"], row["offset"], row["size"]), backbone.transform)
        assert np.array_equal(kept, decoded)


# Caching


def test_only_shards_without_features_are_computed(small, folder, backbone, seen, tmp_path):
    shutil.copytree(folder, tmp_path / folder.name)
    first, *_, last = sorted((tmp_path / folder.name).iterdir())
    first.unlink(), last.unlink()
    kept = identities(tmp_path / folder.name)
    done = extract(backbone, EAGER, small.images, tmp_path)
    lost = [len(list(shards.iter_places(small.images, path.stem))) for path in (first, last)]
    assert sum(seen) == sum(lost) == done.computed and done.images == 120
    assert contents(tmp_path / folder.name) == contents(folder)
    assert identities(tmp_path / folder.name).items() >= kept.items()
    again = extract(backbone, EAGER, small.images, tmp_path)
    assert (again.images, again.computed, sum(seen)) == (120, 0, done.computed)


def test_new_images_are_computed_and_no_earlier_file_is_rewritten(backbone, seen, tmp_path):
    small = ingested(tmp_path, (draw(tmp_path / "source", images=6), "field"))
    key = extract(backbone, EAGER, small.images, tmp_path / "features").key
    before, kept = contents(tmp_path / "features" / key), identities(tmp_path / "features" / key)
    draw(tmp_path / "source", images=3, first=6)
    ingested(tmp_path, (tmp_path / "source", "field"))
    seen.clear()
    extract(backbone, EAGER, small.images, tmp_path / "features")
    assert sum(seen) == 9 and len(small.manifest) == 27
    assert contents(tmp_path / "features" / key).items() > before.items()
    assert identities(tmp_path / "features" / key).items() > kept.items()


def test_relabelling_removing_and_a_new_split_change_no_file(backbone, seen, tmp_path):
    small = ingested(tmp_path, (draw(tmp_path / "source", images=6), "field"))
    key = extract(backbone, EAGER, small.images, tmp_path / "features").key
    kept = identities(tmp_path / "features" / key)
    before = small.manifest
    (tmp_path / "source/rings/0000.png").rename(tmp_path / "source/checks/new.png")
    (tmp_path / "source/rings/0001.png").unlink()
    (tmp_path / "source/stripes").rename(tmp_path / "source/bars")
    ingested(tmp_path, (tmp_path / "source", "field"), allow_relabel=True)
    assert not small.manifest.equals(before) and len(small.manifest) == len(before) - 1
    seen.clear()
    assert extract(backbone, EAGER, small.images, tmp_path / "features").computed == 0
    assert seen == [] and identities(tmp_path / "features" / key) == kept


def test_returning_to_an_earlier_backbone_computes_nothing(small, backbone, folder, tmp_path_factory, tmp_path):
    other = backbones.load(small_backbone(tmp_path_factory.getbasetemp(), seed=1))
    done = [extract(one, EAGER, small.images, tmp_path) for one in (backbone, other, backbone, other)]
    assert [entry.computed for entry in done] == [120, 120, 0, 0]


def test_progress_shows_how_many_images_were_cached(small, folder, backbone, tmp_path):
    shutil.copytree(folder, tmp_path / folder.name)
    first = min((tmp_path / folder.name).iterdir())
    first.unlink()
    missing = len(list(shards.iter_places(small.images, first.stem)))
    tally = progress.Tally("extract", missing, "images")

    def reporter(what: str, total: int, unit: str):
        from contextlib import nullcontext

        assert (what, total, unit) == ("extract", missing, "images")
        return nullcontext(tally.add)

    with progress.report_to(reporter):
        extract(backbone, EAGER, small.images, tmp_path)
    assert (tally.done, tally.beside) == (missing, Counter(cached=120 - missing))
    assert str(tally) == f"extract: {missing} of {missing} images, {120 - missing} cached"


KILLED = """
import os, random, signal, sys, time
from contextlib import contextmanager
from pathlib import Path
import torch
from rootstock.backbones import backbones
from rootstock.features import extraction
from rootstock.config import params
from rootstock.system import progress

torch.set_num_threads(1)
images, folder, out, seed = *map(Path, sys.argv[1:4]), int(sys.argv[4])
moments = random.Random(seed)

@contextmanager
def slowly(what, total, unit):
    yield lambda n, **counts: time.sleep(0.01)

backbone = backbones.load(folder)
killed = attempt = 0
while killed < 20:
    child = os.fork()
    if child == 0:
        with progress.report_to(slowly):
            extraction.extract(backbone, params.Extract(engine="eager", batch_size=4), images, out)
        os._exit(0)
    time.sleep(moments.uniform(0.02, 0.3))
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    killed += os.WIFSIGNALED(status)
    done = sorted(path for path in out.rglob("*.parquet"))
    print(os.WIFSIGNALED(status), *(f"{path.name}:{path.stat().st_ino}" for path in done), flush=True)
    if not os.WIFSIGNALED(status):  # all is there: from the beginning
        print("over", flush=True)
        for path in done:
            path.unlink()
"""


@pytest.mark.slow
def test_an_extraction_killed_twenty_times_ends_like_an_uninterrupted_one(small, backbone, tmp_path_factory, tmp_path):
    settings = Extract(engine="eager", batch_size=4)
    whole = extract(backbone, settings, small.images, tmp_path / "undisturbed")
    weights = small_backbone(tmp_path_factory.getbasetemp())
    command = [sys.executable, "-c", KILLED, small.images, weights, tmp_path / "killed", "0"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=240)
    assert done.stdout.count("True") == 20
    for life in done.stdout.split("over\n"):
        found = [set(line.split()[1:]) for line in life.splitlines()]
        assert all(earlier <= later for earlier, later in pairwise(found))  # what is finished stays
    extract(backbone, settings, small.images, tmp_path / "killed")
    assert contents(tmp_path / "killed" / whole.key) == contents(tmp_path / "undisturbed" / whole.key)
    assert list((tmp_path / "killed").rglob("*.tmp")) == []


# Views


def test_each_view_is_cached_separately_and_only_an_additional_one_is_computed(small, folder, backbone, seen, tmp_path):
    done = extract(backbone, Extract(engine="eager", views=2), small.images, tmp_path)
    assert (done.images, done.computed, done.key) == (120, 360, folder.name)
    assert done.describe() == f"360 of 360 views of images extracted with eager, features/{folder.name}"
    assert contents(tmp_path / folder.name) == contents(folder)
    kept = {path.name: contents(path) for path in tmp_path.iterdir() if path.is_dir()}
    assert len(kept) == 3
    seen.clear()
    more = Extract(engine="eager", views=3)
    assert extract(backbone, more, small.images, tmp_path).computed == sum(seen) == 120
    assert {name: contents(tmp_path / name) for name in kept} == kept
    paths = feature_keys.find(backbone.description, more, tmp_path)
    assert len({path.name for path in paths} | kept.keys()) == 4
    [plain, *views] = [np.concatenate([x for x, _ in reader.Features(path, small.manifest)]) for path in paths]
    for one, other in pairwise([plain, *views]):
        similar = (one * other).sum(1) / np.linalg.norm(one, axis=1) / np.linalg.norm(other, axis=1)
        assert 0.1 < np.median(similar) < 0.9999


def test_a_head_is_trained_on_the_images_and_their_views(small, backbone, tmp_path):
    settings = Extract(engine="eager", views=2)
    extract(backbone, settings, small.images, tmp_path)
    paths = feature_keys.find(backbone.description, settings, tmp_path)
    rows = small.split("train")
    train, val = reader.Features(paths, rows), reader.Features(paths[0], small.split("val"))
    assert len(train) == 3 * len(rows) == sum(len(x) for x, _ in train)
    assert np.array_equal(np.concatenate([labels for _, labels in train]), train.labels)
    fitted = logistic.fit_logistic_path(train, val, CLASSES, (10.0,))
    alone = logistic.fit_logistic_path(reader.Features(paths[0], rows), val, CLASSES, (10.0,))
    assert not np.allclose(fitted.weight, alone.weight)
    assert head.evaluate(fitted, val)[1] > 0.4  # of three classes, by a network of random weights


# Errors


class Louder(nn.Module):
    def forward(self, features: Tensor) -> Tensor:
        return features * 1e20


def test_features_too_large_for_float16_stop_the_extraction_and_leave_no_file(small, backbone, tmp_path):
    loud = dataclasses.replace(backbone, network=nn.Sequential(backbone.network, Louder()))
    with pytest.raises(ParamsError, match=r"params\.yaml: extract\.dtype is 'float16', but .* expected float32"):
        extract(loud, Extract(engine="eager", dtype="float16"), small.images, tmp_path)
    assert list(tmp_path.rglob("*.parquet*")) == []


def test_decoding_on_a_missing_gpu_is_an_error(small, backbone, tmp_path):
    with pytest.raises(ParamsError, match=r"extract\.decode is 'gpu', but this machine has no GPU; expected full"):
        extract(backbone, Extract(engine="eager", decode="gpu"), small.images, tmp_path)


def test_an_engine_that_is_not_installed_is_an_error(small, backbone, tmp_path, monkeypatch):
    monkeypatch.setattr(engines.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ParamsError, match=r"but openvino is not installed; expected another engine"):
        extract(backbone, Extract(engine="openvino"), small.images, tmp_path)

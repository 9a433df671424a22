"""Extraction: each image goes through the backbone once, even if runs are interrupted."""

import dataclasses
import shutil
import subprocess
import sys
from collections import Counter
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor, nn

from rootstock.backbones import backbones
from rootstock.config.params import Extract
from rootstock.dataset import shards
from rootstock.features import engines, extraction, feature_files, feature_keys, reader
from rootstock.features.extraction import extract
from rootstock.images.loader import Normalise, prepare
from rootstock.system import progress
from rootstock.system.errors import DamagedError, ParamsError, SourceError
from rootstock.training import head
from tests.small_dataset import CLASSES, Small, draw, small_backbone, take_in

EAGER = Extract(engine="eager")


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


def test_a_feature_is_what_the_backbone_gives_of_the_image(small, folder, backbone):
    row = small.manifest.iloc[77]
    with shards.Reader(small.images) as reader:
        pixels = prepare(reader.read(row["shard"], row["offset"], row["size"]), backbone.transform)
    with torch.inference_mode():
        shown = Normalise(backbone.transform)(torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None])
        expected = backbone.network(shown)[0].numpy()
    table = pd.read_parquet(folder / f"{row['shard']}.parquet").set_index("image_id")
    np.testing.assert_allclose(table.loc[row["image_id"], "feature"], expected, rtol=1e-3, atol=1e-3)
    assert expected.std() > 0


# Caching


def test_only_the_shards_that_have_no_features_yet_are_computed(small, folder, backbone, seen, tmp_path):
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


def test_new_images_are_computed_and_no_earlier_file_is_touched(backbone, seen, tmp_path):
    small = take_in(tmp_path, (draw(tmp_path / "source", images=6), "field"))
    key = extract(backbone, EAGER, small.images, tmp_path / "features").key
    before, kept = contents(tmp_path / "features" / key), identities(tmp_path / "features" / key)
    draw(tmp_path / "source", images=3, first=6)
    take_in(tmp_path, (tmp_path / "source", "field"))
    seen.clear()
    extract(backbone, EAGER, small.images, tmp_path / "features")
    assert sum(seen) == 9 and len(small.manifest) == 27
    assert contents(tmp_path / "features" / key).items() > before.items()
    assert identities(tmp_path / "features" / key).items() > kept.items()


def test_relabelling_removing_and_a_new_split_change_no_file(backbone, seen, tmp_path):
    small = take_in(tmp_path, (draw(tmp_path / "source", images=6), "field"))
    key = extract(backbone, EAGER, small.images, tmp_path / "features").key
    kept = identities(tmp_path / "features" / key)
    before = small.manifest
    (tmp_path / "source/rings/0000.png").rename(tmp_path / "source/checks/new.png")
    (tmp_path / "source/rings/0001.png").unlink()
    (tmp_path / "source/stripes").rename(tmp_path / "source/bars")
    take_in(tmp_path, (tmp_path / "source", "field"), allow_relabel=True)
    assert not small.manifest.equals(before) and len(small.manifest) == len(before) - 1
    seen.clear()
    assert extract(backbone, EAGER, small.images, tmp_path / "features").computed == 0
    assert seen == [] and identities(tmp_path / "features" / key) == kept


def test_another_backbone_and_back_again_computes_nothing(small, backbone, folder, tmp_path_factory, tmp_path):
    other = backbones.load(small_backbone(tmp_path_factory.getbasetemp(), seed=1))
    done = [extract(one, EAGER, small.images, tmp_path) for one in (backbone, other, backbone, other)]
    assert [entry.computed for entry in done] == [120, 120, 0, 0]


def test_progress_shows_how_many_were_there_already(small, folder, backbone, tmp_path):
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


# Interruption and damage


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
def test_an_extraction_killed_at_twenty_moments_ends_as_an_undisturbed_one(small, backbone, tmp_path_factory, tmp_path):
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


def damage(small: Small, tmp_path: Path, at: int, data: bytes) -> tuple[Path, str]:
    """Copy the shards, and overwrite bytes of an image in the second one."""
    copied = shutil.copytree(small.images, tmp_path / "images")
    shard = shards.names(copied)[1]
    member = list(shards.iter_members(copied, shard))[2]
    path = shards.path_of(copied, shard)
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.seek(member.offset + at)
        file.write(data)
    return copied, shard


@pytest.mark.parametrize(("at", "data"), [(60, b"\x00\xff\x00\xff"), (-400, b"\x00\xff")], ids=["image", "header"])
def test_changed_bytes_in_a_shard_are_an_error_and_intact_files_are_kept(small, backbone, tmp_path, at, data):
    copied, shard = damage(small, tmp_path, at, data)
    with pytest.raises(SourceError, match=rf"{shard}\.tar: .* restore it with `dvc checkout`"):
        extract(backbone, EAGER, copied, tmp_path / "out")
    assert {path.stem for path in (tmp_path / "out").rglob("*.parquet")} == {shards.names(copied)[0]}
    assert list((tmp_path / "out").rglob("*.tmp")) == []


@pytest.mark.parametrize("share", [0, 0.3, 0.9])
def test_a_shard_that_ends_too_early_is_an_error_that_says_what_to_do(small, backbone, tmp_path, share):
    copied = shutil.copytree(small.images, tmp_path / "images")
    path = shards.path_of(copied, shards.names(copied)[1])
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(SourceError, match=rf"{path.name}: .*restore it with `dvc checkout`"):
        extract(backbone, EAGER, copied, tmp_path / "out")
    assert list((tmp_path / "out").rglob(f"{path.stem}*")) == list((tmp_path / "out").rglob("*.tmp")) == []


def test_an_image_that_decodes_but_is_another_one_is_found_by_its_shards_name(small, backbone, tmp_path):
    copied = shutil.copytree(small.images, tmp_path / "images")
    shard = shards.names(copied)[1]
    one, two, *_ = (m for m in shards.iter_members(copied, shard))
    content = bytearray(shards.path_of(copied, shard).read_bytes())
    size = min(one.size, two.size)
    content[one.offset : one.offset + size] = content[two.offset : two.offset + size]
    content[one.offset + size : one.offset + one.size] = bytes(one.size - size)
    shards.path_of(copied, shard).chmod(0o644)
    shards.path_of(copied, shard).write_bytes(content)
    with pytest.raises(SourceError, match=rf"{shard}\.tar: "):
        extract(backbone, EAGER, copied, tmp_path / "out")
    assert not list((tmp_path / "out").rglob(f"{shard}*"))


class Louder(nn.Module):
    def forward(self, features: Tensor) -> Tensor:
        return features * 1e20


def test_features_too_large_for_float16_stop_it_and_leave_nothing(small, backbone, tmp_path):
    loud = dataclasses.replace(backbone, network=nn.Sequential(backbone.network, Louder()))
    with pytest.raises(ParamsError, match=r"params\.yaml: extract\.dtype is 'float16', but .* expected float32"):
        extract(loud, Extract(engine="eager", dtype="float16"), small.images, tmp_path)
    assert list(tmp_path.rglob("*.parquet*")) == []


# Views


def test_each_view_is_kept_by_itself_and_a_further_one_computes_itself_alone(small, folder, backbone, seen, tmp_path):
    done = extract(backbone, Extract(engine="eager", views=2), small.images, tmp_path)
    assert (done.images, done.computed, done.key) == (120, 360, folder.name)
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
    fitted = head.fit_logistic_path(train, val, CLASSES, (10.0,))
    alone = head.fit_logistic_path(reader.Features(paths[0], rows), val, CLASSES, (10.0,))
    assert not np.allclose(fitted.weight, alone.weight)
    assert head.evaluate(fitted, val)[1] > 0.4  # of three classes, by a network of random weights


# What this machine cannot do


def test_a_gpu_that_is_not_there_decodes_nothing(small, backbone, tmp_path):
    with pytest.raises(ParamsError, match=r"extract\.decode is 'gpu', but this machine has no GPU; expected full"):
        extract(backbone, Extract(engine="eager", decode="gpu"), small.images, tmp_path)


def test_an_engine_that_cannot_is_an_error_that_names_the_parameters(small, backbone, tmp_path, monkeypatch):
    monkeypatch.setattr(engines.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ParamsError, match=r"but openvino is not installed; expected another engine"):
        extract(backbone, Extract(engine="openvino"), small.images, tmp_path)


# Which libraries


def test_files_tell_the_versions_of_the_libraries_that_computed_them(small, folder):
    for path in folder.iterdir():
        assert feature_files.read_libraries(path) == {
            name: version(name) for name in ("torch", "torchvision", "pillow")
        }


def test_features_of_other_versions_of_libraries_are_used_and_the_mixture_is_in_the_log(
    small, folder, backbone, tmp_path, caplog, monkeypatch
):
    shutil.copytree(folder.parent, tmp_path / "features")
    kept, lost = sorted((tmp_path / "features" / folder.name).iterdir())[:2]
    lost.unlink()
    monkeypatch.setattr(engines.packages, "installed_versions", lambda *names: dict.fromkeys(names, "99"))
    with caplog.at_level("INFO"):
        done = extract(backbone, EAGER, small.images, tmp_path / "features")
    assert 0 < done.computed < 120
    assert f"cached feature files were computed by pillow {version('pillow')}, torch " in caplog.text
    assert "new ones by pillow 99, torch 99, torchvision 99: the last digits may differ" in caplog.text
    assert feature_files.read_libraries(lost)["torch"] == "99" != feature_files.read_libraries(kept)["torch"]
    caplog.clear()
    assert extract(backbone, EAGER, small.images, tmp_path / "features").computed == 0
    assert "were computed by" not in caplog.text  # nothing is mixed now


# Digests of feature files


def zeros(path: Path) -> None:
    """Write a file with the same images and schema, but features of zero."""
    table = pq.read_table(path)
    kind = table.schema.field("feature").type
    none = pa.array(np.zeros(kind.list_size * len(table), np.float32))
    columns = [table["image_id"], pa.FixedSizeListArray.from_arrays(none, type=kind)]
    pq.write_table(pa.Table.from_arrays(columns, schema=table.schema), path)


def half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def blank(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def of_another_shard(path: Path) -> None:
    path.write_bytes(next(other for other in sorted(path.parent.iterdir()) if other != path).read_bytes())


def one_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def without_digest(path: Path) -> None:
    feature_files.digest_path(path).unlink()


DAMAGE = [zeros, half, empty, blank, of_another_shard, one_bit, without_digest]


@pytest.mark.parametrize("damage", DAMAGE)
def test_features_that_are_not_what_was_written_are_named_and_computed_again(
    backbone, small, folder, tmp_path, damage, caplog
):
    whole = shutil.copytree(folder.parent, tmp_path / "features") / folder.name
    path = sorted(whole.iterdir())[1]
    before = path.read_bytes()
    damage(path)
    rows = small.manifest[small.manifest["shard"] == path.stem]
    with pytest.raises(DamagedError, match=f"{path} does not match the digest in .*dvc checkout"):
        reader.Features(whole, rows)
    done = extraction.extract(backbone, Extract(), small.images, whole.parent)
    assert done.computed == len(pq.read_table(path))
    assert str(path) in caplog.text and "do not match their digests" in caplog.text
    assert path.read_bytes() == before
    assert len(reader.Features(whole, rows)) == len(rows)


def test_the_digests_are_read_by_sha256sum(folder):
    listed = [path.name for path in sorted(folder.parent.glob(f"{folder.name}.*.sha256"))]
    assert len(listed) == len(list(folder.iterdir()))
    command = ["sha256sum", "--check", *listed]
    done = subprocess.run(command, cwd=folder.parent, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_features_of_an_earlier_version_without_digests_are_used_unchecked(backbone, small, folder, tmp_path, caplog):
    shutil.copytree(folder, tmp_path / folder.name)
    assert extraction.extract(backbone, Extract(), small.images, tmp_path).computed == 0
    assert "written by an earlier version" in caplog.text
    assert feature_files.has_digests(tmp_path / folder.name)

"""Which feature files are used: those that match their digests, whichever versions of libraries computed them."""

import shutil
import subprocess
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rootstock.config.params import Extract
from rootstock.features import engines, extraction, feature_files, reader
from rootstock.features.extraction import extract
from rootstock.system.errors import DamagedError
from tests.small_dataset import EAGER


def test_files_record_the_versions_of_the_libraries_that_computed_them(small, folder):
    for path in folder.iterdir():
        assert feature_files.read_libraries(path) == {name: version(name) for name in ("torch", "simplejpeg", "pillow")}


def test_features_of_other_library_versions_are_used_and_the_mixture_is_logged(
    small, folder, backbone, tmp_path, caplog, monkeypatch
):
    shutil.copytree(folder.parent, tmp_path / "features")
    kept, lost = sorted((tmp_path / "features" / folder.name).iterdir())[:2]
    lost.unlink()
    monkeypatch.setattr(engines.packages, "installed_versions", lambda *names: dict.fromkeys(names, "99"))
    with caplog.at_level("INFO"):
        done = extract(backbone, EAGER, small.images, tmp_path / "features")
    assert 0 < done.computed < 120
    here = f"pillow {version('pillow')}, simplejpeg {version('simplejpeg')}, torch {version('torch')}"
    assert f"cached feature files were computed by {here}, new ones by" in caplog.text
    assert "new ones by pillow 99, simplejpeg 99, torch 99: the last digits may differ" in caplog.text
    assert feature_files.read_libraries(lost)["torch"] == "99" != feature_files.read_libraries(kept)["torch"]
    caplog.clear()
    assert extract(backbone, EAGER, small.images, tmp_path / "features").computed == 0
    assert "were computed by" not in caplog.text  # nothing is mixed now


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
def test_damaged_feature_files_are_named_and_computed_again(backbone, small, folder, tmp_path, damage, caplog):
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


def test_sha256sum_can_check_the_digests(folder):
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

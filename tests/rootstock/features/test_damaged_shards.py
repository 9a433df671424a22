"""A damaged shard ends an extraction with an error that names it; features of intact shards are kept."""

import shutil
from pathlib import Path

import pytest

from rootstock.dataset import shards
from rootstock.features.extraction import extract
from rootstock.system.errors import SourceError
from tests.small_dataset import EAGER, Small


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
def test_changed_bytes_in_a_shard_are_an_error_and_features_of_intact_shards_are_kept(
    small, backbone, tmp_path, at, data
):
    copied, shard = damage(small, tmp_path, at, data)
    with pytest.raises(SourceError, match=rf"{shard}\.tar: .* restore it with `dvc checkout`"):
        extract(backbone, EAGER, copied, tmp_path / "out")
    assert {path.stem for path in (tmp_path / "out").rglob("*.parquet")} == {shards.names(copied)[0]}
    assert list((tmp_path / "out").rglob("*.tmp")) == []


@pytest.mark.parametrize("share", [0, 0.3, 0.9])
def test_a_truncated_shard_is_an_error_that_says_what_to_do(small, backbone, tmp_path, share):
    copied = shutil.copytree(small.images, tmp_path / "images")
    path = shards.path_of(copied, shards.names(copied)[1])
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(SourceError, match=rf"{path.name}: .*restore it with `dvc checkout`"):
        extract(backbone, EAGER, copied, tmp_path / "out")
    assert list((tmp_path / "out").rglob(f"{path.stem}*")) == list((tmp_path / "out").rglob("*.tmp")) == []


def test_an_image_replaced_by_another_one_is_detected_although_it_decodes(small, backbone, tmp_path):
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

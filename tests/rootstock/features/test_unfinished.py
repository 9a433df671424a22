"""An extraction that is stopped within a shard goes on there, and writes the same bytes."""

from pathlib import Path

import pytest

from rootstock.backbones import backbones
from rootstock.config import params
from rootstock.dataset import shards
from rootstock.features import extraction, unfinished
from rootstock.features.preparing import Preparation
from rootstock.system import progress
from rootstock.system.errors import SourceError
from tests.small_dataset import ingested, small_backbone, small_dataset

SETTINGS = params.Extract(engine="eager", batch_size=8)


class Killed(BaseException):
    """As a kill: nothing handles it."""


@pytest.fixture
def slow(monkeypatch):
    """As if every group of images took long."""
    monkeypatch.setattr(unfinished, "EVERY_S", 0.0)
    monkeypatch.setattr(unfinished, "SHORT_S", 0.0)


@pytest.fixture
def one_shard(tmp_path, tmp_path_factory):
    small = small_dataset(tmp_path_factory.getbasetemp())
    return ingested(tmp_path / "one", (small.source, "studio"), shard_mb=10)


@pytest.fixture
def extract(tmp_path, tmp_path_factory, one_shard, monkeypatch):
    """Extract into a folder; returns its files, and how many images were decoded; may be killed after some."""
    backbone = backbones.load(small_backbone(tmp_path_factory.getbasetemp()))
    prepare = Preparation.__call__

    def run(name: str, kill_after: int = 10**9) -> tuple[dict[str, bytes], int]:
        decoded = []

        def counted(self, part):
            decoded.extend(part[1])
            return prepare(self, part)

        monkeypatch.setattr(Preparation, "__call__", counted)
        done = 0

        class Reports:
            def __enter__(self):
                return self

            def __exit__(self, *error):
                return None

            def __call__(self, n, **counts):
                nonlocal done
                done += n
                if done >= kill_after:
                    raise Killed

        with progress.report_to(lambda *what: Reports()):
            features = tmp_path / name
            extraction.extract(backbone, SETTINGS, one_shard.images, features, unfinished=tmp_path / "unfinished")
        files = {str(path.relative_to(features)): path.read_bytes() for path in features.rglob("*.parquet")}
        return files, len(decoded)

    return run


@pytest.fixture
def kept(tmp_path):
    """The files that are kept."""
    return lambda: sorted(path for path in (tmp_path / "unfinished").rglob("*.safetensors"))


@pytest.mark.usefixtures("slow")
@pytest.mark.parametrize("kill_after", [1, 30, 60])  # of 60 images; the last before the file is written
def test_only_the_rest_of_the_shard_is_decoded_and_the_bytes_are_those_of_an_extraction_in_one_go(
    extract, kept, kill_after
):
    whole, images = extract("whole")
    with pytest.raises(Killed):
        extract("stopped", kill_after)
    done = int(kept()[-1].stem.partition("-")[2])
    assert done >= kill_after
    assert extract("stopped") == (whole, images - done)
    assert kept() == []


@pytest.mark.usefixtures("slow")
def test_what_follows_a_damaged_part_is_computed_again(extract, kept):
    whole, images = extract("whole")
    with pytest.raises(Killed):
        extract("stopped", 50)
    damaged = kept()[2]
    damaged.write_bytes(damaged.read_bytes()[:-1])
    assert extract("stopped") == (whole, images - int(damaged.stem.partition("-")[0]))


@pytest.mark.usefixtures("slow")
def test_a_shard_that_turns_out_to_be_damaged_leaves_nothing(extract, kept, one_shard):
    [shard] = one_shard.images.glob("*.tar")
    with pytest.raises(Killed):
        extract("stopped", 10)
    *_, (_, last) = shards.iter_places(one_shard.images, shard.stem)
    content = bytearray(shard.read_bytes())
    content[last.offset + last.size - 1] ^= 1  # in the checksum of the end of a PNG, which no decoder reads
    shard.write_bytes(content)
    with pytest.raises(SourceError, match="its content does not match the digest in its name"):
        extract("stopped")
    assert kept() == []


def test_of_a_shard_that_is_soon_finished_nothing_is_kept(extract, kept, monkeypatch):
    monkeypatch.setattr(unfinished, "HELD_BYTES", 1)
    with pytest.raises(Killed):
        extract("stopped", 50)
    assert kept() == []


def test_nothing_is_kept_where_no_folder_is_given():
    begun = unfinished.Unfinished(None)
    assert (begun.images, list(begun.parts())) == (0, [])
    begun.remove()
    assert not list(Path().glob("None*"))

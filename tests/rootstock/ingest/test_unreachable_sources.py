"""A source that cannot be reached is an error the first time; later, its images are kept and nothing changes."""

import shutil
import zipfile

import pytest

from rootstock.config import params
from rootstock.ingest.ingest import IngestResult
from rootstock.system.errors import SourceError
from tests.images import put, put_classes
from tests.store import CLASSES


def test_a_source_that_was_never_ingested_and_is_unreachable_is_an_error(store, tmp_path):
    with pytest.raises(SourceError, match=r"photos does not exist"):
        store.ingest(tmp_path / "photos")


@pytest.mark.parametrize("another_clone", [False, True])
def test_a_known_source_that_is_unreachable_is_a_warning_and_the_dataset_does_not_change(
    store, photos, caplog, another_clone
):
    for path, content in {"ants/bad.png": b"x", "ants/copy.png": (photos / "ants" / "00.png").read_bytes()}.items():
        put(photos / path, content)
    store.ingest(photos)
    before, times = store.bytes(), store.times()
    photos.rename(photos.with_name("unplugged"))
    if another_clone:
        shutil.rmtree(store.scratch)
    for _ in range(2):
        caplog.clear()
        assert store.ingest(photos) == IngestResult(images=15, new=0, rejected=2, changed=False)
        assert "photos does not exist" in caplog.text
        assert "Its 15 earlier images are kept." in caplog.text
        assert (store.bytes(), store.times()) == (before, times)


def test_an_unreachable_archive_and_manifest_leave_the_dataset_unchanged(store, tmp_path, photos):
    rows = [
        f"{path.relative_to(photos)},{path.parent.name},{'meadow' if number % 2 else ''},"
        + ("train", "val", "test", "")[number % 4]
        for number, path in enumerate(sorted(photos.rglob("*.png")))
    ]
    rows += ["gone.png,ants,,", "ants/00.png,,,"]
    put(photos / "list.csv", "\n".join(["path,label,domain,split", *rows]).encode())
    more = put_classes(tmp_path / "more", CLASSES, first=100)
    with zipfile.ZipFile(tmp_path / "more.zip", "w") as archive:
        archive.writestr("zz/../../evil.png", b"x")
        archive.writestr("ants/a.txt", b"x")
        for path in sorted(more.rglob("*.png"), reverse=True):
            archive.write(path, path.relative_to(more))
    sources = [photos / "list.csv", params.Source(path=str(tmp_path / "more.zip"), domain="shed")]
    store.ingest(*sources)
    before = store.bytes()
    assert set(store.manifest["domain"]) == {"garden", "meadow", "shed"}
    for path in (photos, tmp_path / "more.zip"):
        path.rename(path.with_name("unplugged " + path.name))
    shutil.rmtree(store.scratch)
    store.ingest(*sources)
    assert store.bytes() == before


def test_reachable_sources_are_ingested_while_another_is_unreachable(store, tmp_path, photos):
    more = put_classes(tmp_path / "more", CLASSES, first=100)
    store.ingest(photos, more)
    shutil.rmtree(photos)
    put(more / "ants" / "new.png", 500)
    assert store.ingest(photos, more) == IngestResult(images=31, new=1, rejected=0, changed=True)


def test_an_invalid_manifest_is_an_error_even_if_it_was_ingested_before(store, photos):
    rows = "".join(f"{path.relative_to(photos)},{path.parent.name}\n" for path in sorted(photos.rglob("*.png")))
    put(photos / "list.csv", ("path,label\n" + rows).encode())
    store.ingest(photos / "list.csv")
    put(photos / "list.csv", ("path,class\n" + rows).encode())
    with pytest.raises(SourceError, match="no column 'label'"):
        store.ingest(photos / "list.csv")

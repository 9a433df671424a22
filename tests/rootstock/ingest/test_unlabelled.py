"""Images to classify are listed without labels: folders, patterns, archives, tables, lists, on any store."""

import os
import tarfile
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rootstock.images.reasons import Reason, Rejected
from rootstock.ingest.sources import Images
from rootstock.ingest.unlabelled import list_images
from rootstock.system import roots
from rootstock.system.errors import SourceError
from tests.images import encoded, picture
from tests.site import site

NAMES = ("a.png", "deep/er/b.jpg", "deep/c[1].png", "none", "ünder/d.PNG")


@pytest.fixture
def photos(tmp_path) -> Path:
    """Images in folders that mean nothing, among files that are none."""
    for number, name in enumerate((*NAMES, "README.md", "labels.csv", ".hidden.png", "__MACOSX/a.png")):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(picture(number), "PNG"))
    return tmp_path / "photos"


def read(images: Images) -> dict[str, bytes | Reason]:
    found: dict[str, bytes | Reason] = {}
    for item, load in images.read({item.path for item in images.items}):
        try:
            found[item.path] = load()
        except Rejected as rejected:
            found[item.path] = rejected.reason
    return found


def content(photos: Path) -> dict[str, bytes]:
    return {name: (photos / name).read_bytes() for name in NAMES}


def test_every_file_below_a_folder_that_may_be_an_image_is_listed_by_its_path(photos):
    assert read(list_images(str(photos))) == content(photos)
    assert not any(item.problem or item.label for item in list_images(str(photos)).items)


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz"])
def test_members_of_an_archive_are_listed_and_those_that_point_outside_are_rejected(photos, tmp_path, kind):
    archive = tmp_path / f"photos.{kind}"
    inside = [path for path in photos.rglob("*") if path.is_file()]
    if kind == "zip":
        with zipfile.ZipFile(archive, "w") as file:
            for path in inside:
                file.write(path, path.relative_to(photos))
            file.writestr("../outside.png", b"")
    else:
        with tarfile.open(archive, f"w:{kind[4:]}" if kind[4:] else "w") as file:
            for path in inside:
                file.add(path, path.relative_to(photos))
            file.addfile(tarfile.TarInfo("../outside.png"))
    images = list_images(str(archive))
    assert {item.path: item.problem for item in images.items} == {
        **dict.fromkeys(NAMES), "../outside.png": Reason.UNSAFE_PATH,
    }  # fmt: skip
    assert {path: data for path, data in read(images).items() if path in NAMES} == content(photos)


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.png", {"a.png"}),
        ("**/*.png", {"a.png", "deep/c[1].png"}),
        ("deep/*", {"c[1].png"}),
        ("deep/c[[]1].png", {"c[1].png"}),
        ("*/er/?.jpg", {"deep/er/b.jpg"}),
    ],
)
def test_a_pattern_lists_what_it_matches_below_the_last_folder_without_one(photos, pattern, expected):
    assert {item.path for item in list_images(f"{photos}/{pattern}").items} == expected


def test_a_pattern_in_the_current_folder_lists_names_relative_to_it(photos, monkeypatch):
    hidden = photos.with_name(".cache")
    photos.rename(hidden)
    monkeypatch.chdir(hidden)
    assert {item.path for item in list_images("*.png").items} == {"a.png"}
    assert {item.path for item in list_images("deep/*.png").items} == {"c[1].png"}


def test_the_name_of_a_file_or_folder_is_no_pattern_whatever_characters_it_has(photos):
    assert set(read(list_images(f"{photos}/deep/c[1].png"))) == {f"{photos}/deep/c[1].png"}
    photos.rename(photos.with_name("photos [2]"))
    assert set(read(list_images(f"{photos} [2]"))) == set(NAMES)


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".parquet"])
@pytest.mark.parametrize("column", ["path", "url", "image", "filename"])
def test_a_table_lists_paths_below_it_absolute_ones_and_urls(photos, suffix, column):
    with site(**{"e.png": b"e"}) as served:
        listed = [
            "a.png",
            str(photos / "deep/er/b.jpg"),
            f"{served.address}/e.png",
            f"{served.address}/none.png",
            "x.png",
        ]
        table = photos / f"list{suffix}"
        if suffix == ".parquet":
            pq.write_table(pa.table({"id": range(5), column: listed}), table)
        else:
            mark = "," if suffix == ".csv" else "\t"
            table.write_text(
                "\n".join(f"{mark.join(row)}" for row in [("id", column), *(("0", one) for one in listed)])
            )
        there = content(photos)
        expected = [there["a.png"], there["deep/er/b.jpg"], b"e", Reason.UNREADABLE, Reason.UNREADABLE]
        assert read(list_images(str(table))) == dict(zip(listed, expected, strict=True))


def test_standard_input_lists_an_address_a_line(photos, monkeypatch):
    monkeypatch.chdir(photos)
    lines = ["a.png\n", "\n", f"  {photos}/deep/er/b.jpg  \n", "gone.png"]
    there = content(photos)
    assert list(read(list_images("-", lines)).values()) == [there["a.png"], there["deep/er/b.jpg"], Reason.UNREADABLE]


def test_names_that_are_not_utf_8_are_read_and_shown_with_escapes(photos):
    odd = os.fsdecode(os.fsencode(photos) + b"/caf\xe9.png")
    Path(odd).write_bytes(b"odd")
    shown = f"{photos}/caf\\xe9.png"
    assert read(list_images("-", [odd + "\n"])) == {shown: b"odd"}
    assert read(list_images(odd)) == {shown: b"odd"}
    assert read(list_images(str(photos)))["caf\\xe9.png"] == b"odd"


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("nowhere", "nowhere does not exist. Expected a folder, an archive or a manifest."),
        ("empty", "empty: no images"),
        ("empty/*.png", r"empty/\*.png: no images"),
        ("-", "-: no images"),
        ("table.csv", "expected a column of addresses, named path, url, image, file or filename; it has name, label."),
        ("broken.zip", "broken.zip is not a readable archive: File is not a zip file"),
        ("gopher://host/a", "gopher://host/a: expected a path or an fsspec URL;"),
    ],
)
def test_what_cannot_be_listed_is_an_error_that_says_why(tmp_path, monkeypatch, address, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "table.csv").write_text("name,label\na.png,1\n")
    (tmp_path / "broken.zip").write_bytes(b"no zip")
    with pytest.raises(SourceError, match=said):
        list_images(address)


def test_a_restricted_run_reads_nothing_outside_its_roots(photos, tmp_path):
    (tmp_path / "secret.png").write_bytes(b"secret")
    (photos / "link.png").symlink_to(tmp_path / "secret.png")
    (photos / "list.csv").write_text(f"path\na.png\n{tmp_path}/secret.png\n")
    with roots.restricted_to([str(photos)]):
        folder, table = list_images(str(photos)), list_images(str(photos / "list.csv"))
    for images, name in ((folder, "link.png"), (table, f"{tmp_path}/secret.png")):
        assert {item.path for item in images.items if item.problem == Reason.UNSAFE_PATH} == {name}

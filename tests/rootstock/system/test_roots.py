"""The addresses that a caller of the API may use lie under the allowed roots, with links, `..` and escapes resolved."""

import os
from pathlib import Path

import pytest

from rootstock.config import params
from rootstock.ingest import sources
from rootstock.ingest.scan import Scan
from rootstock.system.roots import allows, forbids, restricted_to
from tests.workspace import draw_photo


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    """A workspace with a link out of it, beside a folder that is nobody's business."""
    for folder in ("workspace/photos", "workspace-2", "elsewhere", "allowed/a"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "workspace" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "workspace" / "back").symlink_to(tmp_path / "allowed")
    (tmp_path / "workspace" / "loop").symlink_to("loop")
    monkeypatch.chdir(tmp_path / "workspace")
    monkeypatch.setenv("HOME", str(tmp_path / "elsewhere"))
    return tmp_path


ROOTS = ("{home}/workspace", "{home}/allowed", "s3://bucket/photos", "https://h:8080/data", "tcp://scheduler:8786")


def judged(home: Path, address: str) -> bool:
    return allows(address.format(home=home), [root.format(home=home) for root in ROOTS])


@pytest.mark.parametrize(
    "address",
    ["photos", "./photos", "photos/../photos", "{home}/workspace/photos", "file://{home}/allowed", "{home}/allowed/a/b",
     "back/a", "local://{home}/allowed/a", "s3://bucket/photos", "s3://bucket/photos/bees", "s3a://bucket/photos/x",
     "https://h:8080/data/x.zip", "https://h:8080/data/x?version=2", "zip://a/b::s3://bucket/photos/x.zip",
     "simplecache::https://h:8080/data/x", "zip://x::simplecache::file://{home}/allowed/x.zip", "tcp://scheduler:8786",
     "photos/not there yet"],
)  # fmt: skip
def test_addresses_under_a_root_are_allowed(home, address):
    assert judged(home, address)


@pytest.mark.parametrize(
    "address",
    ["..", "../elsewhere", "{home}/elsewhere", "{home}", "/", "/etc/passwd", "~", "~/x", "link", "link/x",
     "photos/../../x",
     "{home}/workspace-2", "{home}/allowed/../elsewhere", "file://{home}/elsewhere", "file:{home}/elsewhere",
     "back/../elsewhere",
     "s3://bucket/photos2", "s3://bucket", "s3://bucket2/photos", "s3://bucket/photos/../x", "s3://bucket/photos/%2e%2e/x",
     "s3://bucket/photos/%252e%252e/x", "s3://bucket/photos\\..\\x", "gs://bucket/photos",
     "http://h:8080/data", "https://h/data",
     "https://h:8080.evil/data", "https://h:8080@evil/data", "https://evil/https://h:8080/data", "https://h:8080/data/../x",
     "zip://a::/etc/x.zip", "zip://x", "simplecache::file://{home}/elsewhere", "simplecache::s3://other/x",
     "zip://photos::file:///etc/x.zip", "file://{home}/allowed::s3://other/x", "s3://bucket/photos::file:///etc",
     "photos/\0/x", "tcp://scheduler:87860", "tcp://other:8786", "memory://x", "zip://{home}/workspace/photos"],
)  # fmt: skip
def test_addresses_outside_the_roots_are_not_allowed(home, address):
    assert not judged(home, address)


def test_a_link_to_itself_is_not_allowed(home):
    assert not judged(home, "loop/x")


def listed(path: Path, scratch: Path) -> dict[str, str | None]:
    """What a source offers, and why not."""
    with Scan(scratch / "scan.sqlite") as scan:
        source = sources.open_source(params.Source(path=str(path), domain="d"), scratch, scan)
    return {item.path: item.problem and item.problem.value for item in source.items}


def test_files_and_links_of_a_source_must_lie_under_the_roots_too(home):
    inside, outside = home / "workspace" / "photos", home / "elsewhere"
    for number, folder in enumerate((inside / "moss", outside)):
        draw_photo(folder / f"{number}.png", "moss", number)
    (inside / "moss" / "linked.png").symlink_to(outside / "1.png")
    (inside / "plum").symlink_to(outside)
    rows = [
        inside / "moss" / "0.png",
        outside / "1.png",
        f"file://{outside}/1.png",
        "../../elsewhere/1.png",
        "moss/linked.png",
    ]
    (inside / "list.csv").write_text("path,label\n" + "".join(f"{row},x\n" for row in rows))

    own = listed(inside / "list.csv", home)
    assert set(own.values()) == {None}  # a person's own table reaches what the person reaches
    with restricted_to([str(home / "workspace")]):
        table, folder = listed(inside / "list.csv", home), listed(inside, home)
    assert table["moss/0.png"] is None
    assert {why for path, why in table.items() if path != "moss/0.png"} == {"unsafe_path"}
    assert folder["moss/0.png"] is None
    assert folder["moss/linked.png"] == folder["plum/1.png"] == "unsafe_path"
    assert not forbids("/etc/passwd", "file")


def test_paths_in_a_remote_store_must_lie_under_its_roots():
    with restricted_to(["s3://bucket/photos"]):
        assert not forbids("bucket/photos/a.png", "s3")
        assert forbids("bucket/other/a.png", "s3") and forbids("bucket/photos/../a.png", "s3")
        assert forbids(os.fspath(Path("/etc/passwd")), "file")

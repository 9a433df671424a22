"""Web servers that do not answer, or answer with errors for a while: no run waits for long, no image leaves for it."""

import shutil
import threading
import time
from contextlib import nullcontext
from importlib.util import find_spec
from pathlib import Path

import fsspec
import pytest

from rootstock.ingest import folders, lookups, silent_hosts
from rootstock.ingest.lookups import AWAY
from rootstock.ingest.scan import ROWS, Scan
from rootstock.system import parallel, progress, stores
from tests.images import put_classes
from tests.rootstock.ingest.test_web_sources import Quiet, web
from tests.store import CLASSES

pytestmark = pytest.mark.skipif(find_spec("aiohttp") is None, reason="needs the extra rootstock[http]")


class Failing(Quiet):
    """Answers with an HTTP status for some paths, and not at all for others."""

    status: dict[str, int] = {}  # noqa: RUF012
    silent: set[str] = set()  # noqa: RUF012
    go_on = threading.Event()

    def send_head(self):
        if self.path in self.silent:
            self.go_on.wait(60)
        if status := self.status.get(self.path):
            self.send_error(status)
            return None
        return super().send_head()


@pytest.fixture
def failing():
    handler = type("OfThisTest", (Failing,), {"status": {}, "silent": set(), "go_on": threading.Event()})
    yield handler
    handler.go_on.set()


@pytest.fixture
def impatient(monkeypatch):
    """Wait for a web server for half a second."""
    monkeypatch.setattr(stores, "SILENT_S", 0.5)
    monkeypatch.setattr(fsspec.config, "conf", {})
    stores._bound_waiting.cache_clear()
    yield
    stores._bound_waiting.cache_clear()


def table_of(folder: Path, url: str, table: Path) -> Path:
    """Write a table of the URLs of the photos in a folder."""
    rows = [f"{url}/{path.relative_to(folder)},{path.parent.name}" for path in sorted(folder.rglob("*.png"))]
    table.write_text("\n".join(["path,label", *rows]) + "\n")
    return table


def stamps_of(addresses: list[str]) -> list[str | None]:
    return list(folders.file_stamps(stores.open_store(addresses[0])[0], lambda: iter(addresses)))


def test_an_address_that_does_not_answer_is_left_out_until_the_next_run(store, tmp_path, failing, impatient, caplog):
    photos = put_classes(tmp_path / "web", CLASSES)
    with web(photos, failing) as url:
        table = table_of(photos, url, tmp_path / "list.csv")
        failing.silent.add("/ants/00.png")
        began = time.monotonic()
        assert store.ingest(table).images == 14
        assert time.monotonic() - began < 20
        assert (
            f"1 of 15 images cannot be reached (e.g. {url}/ants/00.png); 1 left out until the next run" in caplog.text
        )
        assert set(store.rejected.values()) == {"unreadable"}
        failing.silent.clear()
        failing.go_on.set()
        assert store.ingest(table).images == 15


@pytest.mark.parametrize("status", [500, 503, 429])
def test_images_whose_server_has_a_fault_stay_as_they_were(store, tmp_path, failing, status, caplog):
    photos = put_classes(tmp_path / "web", CLASSES)
    with web(photos, failing) as url:
        table = table_of(photos, url, tmp_path / "list.csv")
        assert store.ingest(table).images == 15
        before = store.manifest
        failing.status.update({f"/ants/0{number}.png": status for number in range(6)})
        assert store.ingest(table).images == 15 and store.rejected == {}
        assert store.manifest.equals(before)
        assert "6 of 15 images cannot be reached" in caplog.text and "6 known and unchanged" in caplog.text
        failing.status.update(dict.fromkeys(failing.status, 404))
        failing.status.pop("/ants/05.png"), failing.status.pop("/ants/04.png"), failing.status.pop("/ants/03.png")
        assert store.ingest(table).images == 12  # these are gone


def test_images_of_a_server_that_is_down_stay_as_they_were(store, tmp_path, caplog):
    photos = put_classes(tmp_path / "web", CLASSES)
    with web(photos) as url:
        table = table_of(photos, url, tmp_path / "list.csv")
        assert store.ingest(table).images == 15
    assert store.ingest(table).images == 15
    assert "15 of 15 images cannot be reached" in caplog.text
    shutil.rmtree(photos)


def test_a_host_that_never_answers_keeps_nobody_waiting_for_each_of_its_addresses(
    tmp_path, failing, impatient, caplog, monkeypatch
):
    monkeypatch.setattr(silent_hosts, "MOST_IN_A_ROW", 8)
    photos = put_classes(tmp_path / "web", {"ants": 300, "bees": 9})
    with web(photos, failing) as url, web(photos) as other:
        lines = table_of(photos, url, tmp_path / "list.csv").read_text().splitlines()
        failing.silent.update(f"/{path.relative_to(photos)}" for path in photos.rglob("*.png"))
        lines = [line.replace(url, other) if "bees" in line else line for line in lines]
        began = time.monotonic()
        stamps = stamps_of([line.partition(",")[0] for line in lines[1:]])
        assert time.monotonic() - began < 10  # each round of 64 takes a second, for HEAD and GET
        assert stamps[:300] == [AWAY] * 300
        assert AWAY not in stamps[300:]  # another host
    host = url.removeprefix("http://")
    assert caplog.text.count(f"{host} has not answered 8 requests in a row") == 1
    failing.go_on.set()


def test_a_host_that_answers_now_and_then_is_asked_for_every_address(tmp_path, failing, impatient, caplog, monkeypatch):
    monkeypatch.setattr(silent_hosts, "MOST_IN_A_ROW", 70)
    photos = put_classes(tmp_path / "web", {"ants": 80})
    with web(photos, failing) as url:
        places = [f"{url}/{path.relative_to(photos)}" for path in sorted(photos.rglob("*.png"))]
        failing.silent.update(f"/{path.relative_to(photos)}" for path in sorted(photos.rglob("*.png"))[::2])
        stamps = stamps_of(places)
    assert [stamp == AWAY for stamp in stamps] == [True, False] * 40
    assert "in a row" not in caplog.text
    failing.go_on.set()


class StoppedError(BaseException):
    """As a run that is cancelled raises."""


def test_a_run_that_is_stopped_does_not_wait_for_a_server_that_does_not_answer(store, tmp_path, failing, monkeypatch):
    monkeypatch.setattr(parallel, "PULSE_S", 0.1)
    photos = put_classes(tmp_path / "web", CLASSES)

    def stop() -> None:
        raise StoppedError

    with web(photos, failing) as url:
        table = table_of(photos, url, tmp_path / "list.csv")
        failing.silent.update(f"/{path.relative_to(photos)}" for path in photos.rglob("*.png"))
        began = time.monotonic()
        with pytest.raises(StoppedError), progress.report_to(lambda *_: progress.silent(), pulse=stop):
            store.ingest(table)
        assert time.monotonic() - began < 5
        failing.go_on.set()


def test_a_run_interrupted_while_it_looks_up_addresses_goes_on_from_there(store, tmp_path, monkeypatch):
    monkeypatch.setattr(lookups, "EVERY_S", 0)
    photos, asked, looked_up = put_classes(tmp_path / "web", CLASSES), [], []

    class Counting(Quiet):
        def send_head(self):
            if self.command == "HEAD":
                asked.append(self.path)
            return super().send_head()

    def advance(n: int, **_: int) -> None:
        looked_up.append(n)
        if len(looked_up) == 10:
            raise StoppedError

    with web(photos, Counting) as url:
        table = table_of(photos, url, tmp_path / "list.csv")
        with pytest.raises(StoppedError), progress.report_to(lambda *_: nullcontext(advance)):
            store.ingest(table)
        time.sleep(0.5)  # what had been asked for in advance has ended
        asked.clear()
        assert store.ingest(table).images == 15
        assert len(asked) == 15 - 10
        asked.clear()
        assert store.ingest(table).images == 15
        assert len(asked) == 15  # what was seen is forgotten as soon as all were


def test_what_has_been_looked_up_is_kept_by_the_ten_thousand_so_that_fast_servers_fill_no_memory(tmp_path):
    with Scan(tmp_path / "scan.sqlite") as scan:
        known = lookups.Lookups(scan, "photos.csv")
        for number in range(ROWS + 1):
            known.add(f"http://host/{number}.png", "1:a")
        assert len(known.fresh) == 1
        assert scan.seen("photos.csv", f"http://host/{ROWS - 1}.png", since=0) == "1:a"

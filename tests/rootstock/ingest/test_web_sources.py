"""Sources on web servers: folders, archives and tables, read concurrently, and no file beyond the size of an image."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from itertools import chain
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from rootstock.images.inspection import Reason, Rejected
from rootstock.ingest import folders
from rootstock.ingest.sources import Unreachable
from rootstock.system import roots
from rootstock.system.errors import SourceError
from tests.archive_files import archived
from tests.images import put
from tests.listing import contents, drawn, labels, manifest, problems


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def copyfile(self, source, outputfile):
        with suppress(ConnectionError):  # a client that only checks for existence hangs up
            super().copyfile(source, outputfile)


class Server(ThreadingHTTPServer):
    request_queue_size = 128  # pending connections


@contextmanager
def web(folder: Path, handler: type[SimpleHTTPRequestHandler] = Quiet) -> Iterator[str]:
    """Serve a folder on the loopback interface without support for byte ranges; yields its URL."""
    server = Server(("127.0.0.1", 0), partial(handler, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def served(tmp_path):
    """Serve a folder; yields the folder and its URL."""
    with web(tmp_path / "served") as url:
        yield tmp_path / "served", url


@pytest.mark.skipif(find_spec("aiohttp") is None, reason="needs the extra rootstock[http]")
def test_folders_archives_and_manifests_are_read_from_a_web_server(listed, served):
    folder, url = served
    expected = {f"pink ants/{number}.png": drawn(number) for number in range(3)}
    for path, data in expected.items():
        put(folder / "photos" / path, data)
    assert contents(listed(f"{url}/photos")) == expected
    for name in ("photos.zip", "photos.tar.gz"):
        assert contents(listed(f"{url}/{archived(folder / name, expected).name}")) == expected
    manifest(folder / "list.csv", "path,label\nphotos/pink%20ants/0.png,x\n")
    assert list(contents(listed(f"{url}/list.csv")).values()) == [drawn(0)]


@pytest.mark.skipif(find_spec("aiohttp") is None, reason="needs the extra rootstock[http]")
@pytest.mark.parametrize("name", ["list.csv", "list.parquet"])
def test_a_local_table_lists_urls_each_of_which_is_asked_for_once(listed, tmp_path, name):
    asked = []

    class Counting(Quiet):
        def send_head(self):
            asked.append((self.command, self.path))
            return super().send_head()

    put(tmp_path / "web/pink ants/1.png", drawn(1))
    put(tmp_path / "web/bees/2.png", drawn(2))
    with web(tmp_path / "web", Counting) as url:
        paths = [f"{url}/pink%20ants/1.png", f"{url}/bees/2.png", f"{url}/bees/gone.png"]
        table = pa.table({"path": paths, "label": ["ants", "bees", "bees"]})
        write = pq.write_table if name == "list.parquet" else pyarrow.csv.write_csv
        write(table, tmp_path / name)
        source = listed(tmp_path / name)
        heads = [path for command, path in asked if command == "HEAD"]
        assert sorted(heads) == ["/bees/2.png", "/bees/gone.png", "/pink%20ants/1.png"]
        assert not any(path.endswith("/") or path.count("/") < 2 for _, path in asked)  # no folder is listed
        assert labels(source) == {paths[0]: "ants", paths[1]: "bees"}
        assert contents(source) == {paths[0]: drawn(1), paths[1]: drawn(2)}
        assert problems(source) == {paths[2]: Reason.UNREADABLE}
        assert [item.stamp for item in listed(tmp_path / name).items] == [item.stamp for item in source.items]


@pytest.mark.skipif(find_spec("aiohttp") is None, reason="needs the extra rootstock[http]")
def test_a_run_that_is_restricted_to_roots_reads_no_urls_of_a_table_beyond_them(listed, tmp_path, served):
    folder, url = served
    put(folder / "ants/1.png", drawn(1))
    put(folder / "bees/2.png", drawn(2))
    table = manifest(tmp_path / "list.csv", f"path,label\n{url}/ants/1.png,ants\n{url}/bees/2.png,bees\n")
    with roots.restricted_to([str(tmp_path), f"{url}/ants"]):
        assert problems(listed(table)) == {f"{url}/bees/2.png": Reason.UNSAFE_PATH}


@pytest.mark.skipif(find_spec("aiohttp") is None, reason="needs the extra rootstock[http]")
def test_a_missing_page_and_a_web_server_that_does_not_answer_are_unreachable(listed, served):
    _, url = served
    with pytest.raises(Unreachable, match="does not exist"):
        listed(f"{url}/photos")
    with pytest.raises(Unreachable, match=r"127\.0\.0\.1:9"):
        listed("http://127.0.0.1:9/photos")


@pytest.mark.skipif(find_spec("aiohttp") is None, reason="needs the extra rootstock[http]")
@pytest.mark.parametrize(
    ("status", "said"),
    [
        (400, "Bad Request"),
        (401, "Unauthorized"),
        (403, "Forbidden"),
        (404, "does not exist"),
        (503, "cannot be reached"),
    ],
)
def test_a_request_that_a_web_server_refuses_is_an_error_and_one_that_fails_is_unreachable(
    listed, tmp_path, status, said
):
    class Refusing(Quiet):
        def send_head(self):
            self.send_error(status)

    (tmp_path / "web").mkdir()
    with web(tmp_path / "web", Refusing) as url:
        for name in ("photos", "photos.zip", "list.csv"):
            with pytest.raises(SourceError, match=said) as raised:
                listed(f"{url}/{name}")
            assert isinstance(raised.value, Unreachable) == (status in (404, 503))


@pytest.mark.skipif(find_spec("aiohttp") is None, reason="needs the extra rootstock[http]")
def test_files_are_requested_concurrently_but_not_all_at_once(listed, tmp_path):
    many, asked = 320, []
    together = threading.Barrier(32, timeout=20)

    class Patient(Quiet):
        """Answers only once this many requests are waiting."""

        def send_head(self):
            if self.path.endswith(".png"):
                asked.append(self.path)
                together.wait()
            return super().send_head()

    for number in range(many):
        put(tmp_path / "web" / f"{number}.png", b"%d" % number)
    manifest(tmp_path / "web" / "list.csv", "path,label\n" + "".join(f"{number}.png,x\n" for number in range(many)))
    with web(tmp_path / "web", Patient) as url:
        source = listed(f"{url}/list.csv")
        (tmp_path / "web" / "99.png").unlink()
        asked.clear()
        reading = source.read({item.path for item in source.items})
        first = next(reading)
        assert len(asked) <= 4 * 2 * 16
        found = {item.path: load for item, load in chain([first], reading)}
    with pytest.raises(Rejected, match="unreadable"):
        found.pop("99.png")()
    assert {path: load() for path, load in found.items()} == {
        f"{number}.png": b"%d" % number for number in range(many) if number != 99
    }


@pytest.mark.skipif(find_spec("aiohttp") is None, reason="needs the extra rootstock[http]")
def test_an_endless_file_of_a_web_server_is_read_no_further_than_the_size_limit(listed, tmp_path, monkeypatch):
    monkeypatch.setattr(folders, "MAX_FILE_BYTES", 2**22)
    sent = []

    class Endless(Quiet):
        """Sends files without a content length; one file never ends."""

        def do_GET(self):
            if not self.path.endswith("x.png"):
                return super().do_GET()
            self.send_response(200)
            self.end_headers()
            with suppress(ConnectionError):
                while len(sent) < 4000:
                    self.wfile.write(bytes(2**18))
                    sent.append(2**18)
            return None

    for name in ("a/endx.png", "a/1.png", "b/2.png"):
        put(tmp_path / "web/photos" / name, drawn(1))
    with web(tmp_path / "web", Endless) as url:
        source = listed(f"{url}/photos")
        found = {item.path: load() for item, load in source.read({item.path for item in source.items})}
    assert found["a/1.png"] == found["b/2.png"] == drawn(1)
    assert len(found["a/endx.png"]) == 2**22 + 1  # which is too large
    assert sum(sent) < 2**27


@pytest.mark.skipif(find_spec("aiohttp") is None, reason="needs the extra rootstock[http]")
def test_a_manifest_without_a_content_length_is_read_to_its_end(listed, tmp_path):
    class Slowly(Quiet):
        def do_GET(self):
            if not self.path.endswith(".csv"):
                return super().do_GET()
            self.send_response(200)
            self.end_headers()
            for line in (tmp_path / "web/list.csv").read_bytes().splitlines(keepends=True):
                self.wfile.write(line)
                self.wfile.flush()
                time.sleep(0.01)
            return None

        def do_HEAD(self):
            self.send_response(200)
            self.end_headers()

    put(tmp_path / "web/1.png", drawn(1))
    manifest(tmp_path / "web/list.csv", "path,label\n" + "".join(f"1.png?{number},x\n" for number in range(50)))
    with web(tmp_path / "web", Slowly) as url:
        assert len(listed(f"{url}/list.csv").items) == 50

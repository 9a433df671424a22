"""A local web site in place of those that torchvision downloads from, and tiny files as its datasets have them."""

import gzip
import io
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from hashlib import file_digest
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath
from urllib.parse import urlparse

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat
from torchvision.datasets import utils


def jpeg(name: str) -> bytes:
    """A small photo whose bytes depend on its name, so that files cannot be confused."""
    pixels = np.random.default_rng(list(name.encode())).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG")
    return buffer.getvalue()


def photos(*names: str) -> dict[str, bytes]:
    return {name: jpeg(name) for name in names}


def mat(**arrays: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    savemat(buffer, arrays)
    return buffer.getvalue()


def idx(array: np.ndarray) -> bytes:
    """The format of MNIST's files."""
    head = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    return gzip.compress(head + array.astype(np.uint8).tobytes())


def tree(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


EUROSAT = photos("2750/Forest/Forest_1.jpg", "2750/Forest/Forest_2.jpg", "2750/River/River_1.jpg")
EUROSAT_LAID_OUT = {name.removeprefix("2750/"): content for name, content in EUROSAT.items()}


def aircraft() -> dict[str, bytes]:
    """FGVCAircraft lists its images as train, val, trainval and test, and has no checksum."""
    data = "fgvc-aircraft-2013b/data"
    return {
        **photos(*(f"{data}/images/{number}.jpg" for number in (1, 2, 3))),
        f"{data}/variants.txt": b"747-100\nF-16A/B\n",
        f"{data}/images_variant_train.txt": b"1 747-100\n",
        f"{data}/images_variant_val.txt": b"2 F-16A/B\n",
        f"{data}/images_variant_trainval.txt": b"1 747-100\n2 F-16A/B\n",
        f"{data}/images_variant_test.txt": b"3 F-16A/B\n",
    }


class Site:
    """A local web site: its files, and the requests it received."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.asked: list[str] = []
        site = self

        class Handler(SimpleHTTPRequestHandler):
            def log_request(self, code="-", size="-"):
                site.asked.append(self.path.lstrip("/"))

            def log_message(self, *args):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
        self.address = f"http://127.0.0.1:{self.server.server_port}/"

    def has(self, files: dict[str, bytes]) -> None:
        for name, content in files.items():
            (self.folder / name).write_bytes(content)


@contextmanager
def torchvision_site(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """Open a site from which alone torchvision downloads; the checksums of its files are right."""
    folder.mkdir()
    site = Site(folder)
    threading.Thread(target=site.server.serve_forever, args=(0.01,), daemon=True).start()
    redirect = utils._get_redirect_url

    def check_md5(path, md5):
        served = folder / Path(path).name
        if not served.exists():
            return True
        with served.open("rb") as one, Path(path).open("rb") as other:
            return file_digest(one, "md5").digest() == file_digest(other, "md5").digest()

    def to_site(url, max_hops):
        return redirect(site.address + PurePosixPath(urlparse(url).path).name, max_hops)

    monkeypatch.setattr(utils, "_get_redirect_url", to_site)
    monkeypatch.setattr(utils, "check_md5", check_md5)
    yield site
    site.server.shutdown()
    site.server.server_close()

"""Ingest from sources as people have them: one full folder, many folders, URLs on a slow store, a tar beyond memory.

python -m benchmarks.sources [--images 10000] [--parts folder folders urls archive] [--latency 0.03]

Draws small JPEGs (64 px, every one different), runs ingest on each source in a workspace of its own, and then again
with nothing new. The store is a web server on loopback that answers each request after a delay. The tar is a sparse
file of `--archive-gb`: beside the images it has members of 2 MB of zeros, which are listed, read and rejected. Memory
is that of ingest's processes, summed, as often as ten times a second.
"""

import argparse
import asyncio
import csv
import io
import multiprocessing
import shutil
import tarfile
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import pyarrow as pa
import pyarrow.parquet as pq
from aiohttp import web

from benchmarks.million import PAUSE, draw_all, watch
from benchmarks.project import copy_project
from rootstock.config import params_file
from rootstock.config.params import Ingest, Source
from rootstock.dataset.tar_headers import header, padded
from tasks.bridge.workspace import LOCAL, PARAMS

CLASSES = 100
MEMBER_BYTES = 2 * 10**6  # of zeros
PORT = 8765
PHOTOS, TABLE = "photos", "images.csv"
PARTS = ("folder", "folders", "urls", "archive")


def write_table(path: Path, rows: list[tuple[str, str]]) -> None:
    """Write a table of paths and labels."""
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("path", "label"), *rows])


def put_into_one_folder(photos: list[Path], folder: Path) -> Path:
    """Move the photos into one folder; a table beside them says their classes. Return the table."""
    folder.mkdir()
    for path in photos:
        path.rename(folder / path.name)
    write_table(folder / TABLE, [(path.name, path.parent.name) for path in photos])
    return folder / TABLE


def write_archive(photos: list[Path], path: Path, size: float) -> None:
    """Write a tar of `size` bytes: between the photos it has members of zeros, which are holes of the file."""
    zeros = round(size / MEMBER_BYTES)
    with path.open("wb") as file:
        for number, photo in enumerate(photos):
            content = photo.read_bytes()
            file.write(header(f"{photo.parent.name}/{photo.name}", len(content)) + content)
            file.write(bytes(padded(len(content)) - len(content)))
            for place in range(zeros * number // len(photos), zeros * (number + 1) // len(photos)):
                file.write(header(f"{photo.parent.name}/zeros-{place:06d}.jpg", MEMBER_BYTES))
                file.seek(padded(MEMBER_BYTES), io.SEEK_CUR)
        file.truncate(file.tell() + 2 * tarfile.BLOCKSIZE)


@contextmanager
def serving_a_table(root: Path, photos: list[Path], latency: float) -> Iterator[str]:
    """Serve photos by another process that answers after a delay in seconds; yield a Parquet table of their URLs."""
    server = multiprocessing.Process(target=serve, args=(root / PHOTOS, latency), daemon=True)
    server.start()
    names = [f"{path.parent.name}/{path.name}" for path in photos]
    urls = [f"http://127.0.0.1:{PORT}/{name}" for name in names]
    while True:
        try:
            urlopen(f"http://127.0.0.1:{PORT}/{names[0]}").close()
            break
        except URLError:
            time.sleep(PAUSE)
    table = pa.table({"path": urls, "label": [path.parent.name for path in photos]})
    pq.write_table(table, root / "urls.parquet")
    yield str(root / "urls.parquet")
    server.terminate()
    server.join()


def serve(folder: Path, latency: float) -> None:
    """Answer requests for the files of a folder."""

    async def answer(request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(latency)
        return web.FileResponse(folder / request.match_info["path"])

    app = web.Application()
    app.router.add_get("/{path:.+}", answer)  # and HEAD
    web.run_app(app, host="127.0.0.1", port=PORT, print=None, access_log=None)


def source(part: str, root: Path, photos: list[Path], asked: argparse.Namespace) -> AbstractContextManager[str]:
    """Arrange the photos as a part has them; return the path or URL of the source."""
    if part == "folder":
        return nullcontext(str(put_into_one_folder(photos, root / "one-folder")))
    if part == "archive":
        write_archive(photos, root / "photos.tar", asked.archive_gb * 1e9)
        return nullcontext(str(root / "photos.tar"))
    if part == "urls":
        return serving_a_table(root, photos, asked.latency)
    return nullcontext(str(root / PHOTOS))


def measure(part: str, root: Path, asked: argparse.Namespace) -> None:
    """Ingest from a source twice, and print what it took."""
    copy_project(root)
    draw_all(root / PHOTOS, range(asked.images), min(CLASSES, asked.images // 100))
    with source(part, root, sorted((root / PHOTOS).rglob("*.jpg")), asked) as path:
        params = params_file.load(PARAMS)
        sources = (Source(path=path, domain="drawn"),)
        params_file.save(root / PARAMS, params.model_copy(update={"ingest": Ingest(sources=sources)}))
        (seconds, memory), (again, _) = (watch(root, root / "ingest.log", "tasks.ingest") for _ in range(2))
    print(
        f"{part:<10}{asked.images:>10,} images {seconds:>9.1f} s {asked.images / seconds:>7,.0f} images/s "
        f"{memory:>6.2f} GiB {again:>7.1f} s again with nothing new",
        flush=True,
    )
    shutil.rmtree(root)


def main() -> None:
    """Measure each part, and print its figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--latency", type=float, default=0.03, help="seconds until the store answers")
    parser.add_argument("--archive-gb", type=float, default=200)
    parser.add_argument("--folder", type=Path, default=LOCAL / "sources", help="working folder, on a disk")
    asked = parser.parse_args()
    asked.folder.mkdir(parents=True, exist_ok=True)
    for part in asked.parts:
        measure(part, (asked.folder / "workspace").resolve(), asked)


if __name__ == "__main__":
    main()

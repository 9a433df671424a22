"""DVC on many small images: a plain folder of them beside the same through ingest's shards, and how each grows.

python -m benchmarks.dvc_scale [--images 50000 200000] [--folder DIR] [--repeat 1]    # 15 GiB free, most of an hour

Every row is a whole process by the clock, its start included. Nothing is dropped from the page cache: what a command
reads it mostly finds in memory. The remote is a folder on the same disk, and a pull goes into a clone without a cache.
"""

import argparse
import io
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from rootstock.system.parallel import cores

CLASSES, MORE = 10, 1000
# A field of 40 by 40 random colours, blown up: 10.0 kB as JPEG, no two near duplicates, 0.4 ms to draw.
FIELD, SIDE, QUALITY = 40, 160, 81
CHUNK = 1000  # images that a process draws at a time
BYTES_AN_IMAGE, COPIES = 12_288, 6  # in blocks of 4 KiB; photos, shards, cache, remote, a clone and its cache

PHOTOS, ARRIVING = "photos", "arriving"
ADD, STATUS, PUSH, PULL = "dvc add", "dvc status", "dvc push", "dvc pull"
START, INGEST, LOOK = "dvc root (its start alone)", "ingest", "ingest, nothing new"
CPU, MEMORY = "ingest, CPU seconds", "ingest, peak MiB"
THEN = f"{MORE:,} more: "
MORE_INGEST, MORE_ADD, MORE_PUSH = THEN + INGEST, THEN + ADD, THEN + PUSH
ALL, MORE_ALL, SENT = "ingest, add, push", THEN + "all three", THEN + "MB pushed"
ROWS = (
    START,
    INGEST,
    ADD,
    STATUS,
    PUSH,
    PULL,
    ALL,
    MORE_INGEST,
    MORE_ADD,
    MORE_PUSH,
    MORE_ALL,
    SENT,
    LOOK,
    CPU,
    MEMORY,
)

INGEST_CODE = """
import resource, sys
from pathlib import Path
from rootstock.ingest import ingest
from rootstock.config import params
photos, repository, scratch = map(Path, sys.argv[1:])
settings = params.Ingest(sources=(params.Source(path=str(photos), domain="drawn"),))
taken = ingest.ingest(settings, 0, repository / "data/images", repository / "data/dataset", scratch)
used = resource.getrusage(resource.RUSAGE_SELF)
print(taken.images, taken.new, taken.rejected, used.ru_utime + used.ru_stime, used.ru_maxrss / 2**10)
"""

Figures = dict[str, float]  # a row of the table -> seconds, or what the row says


@dataclass(frozen=True)
class Repository:
    """A git and DVC repository, with a folder for a remote; DVC's own notes of it are kept beside it, too."""

    folder: Path
    outs: tuple[str, ...]

    @property
    def remote(self) -> Path:
        """The folder that stands for the remote."""
        return self.folder.with_suffix(".remote")

    def make(self) -> None:
        """Make the repository in a folder that may hold files."""
        self.folder.mkdir(exist_ok=True)
        self.git("init", "-q")
        self.dvc("init")
        self.dvc("config", "core.check_update", "false")
        self.dvc("remote", "add", "--default", "remote", str(self.remote))

    def clone(self) -> "Repository":
        """Make a second one from what git holds."""
        other = Repository(self.folder.with_name(f"{self.folder.name}-clone"), self.outs)
        self.git("clone", "-q", ".", str(other.folder))
        return other

    def git(self, *words: str) -> None:
        """Run git."""
        who = ("-c", "user.name=Rootstock", "-c", "user.email=benchmark@example.invalid")
        subprocess.run(["git", *who, *words], cwd=self.folder, check=True)

    def commit(self) -> None:
        """Record in git what `dvc add` left."""
        self.git("add", "--all")
        self.git("commit", "-qm", "Images")

    def dvc(self, *words: str) -> float:
        """Run DVC; returns seconds. It must succeed: of `status` that says that nothing has changed."""
        notes = {"DVC_SITE_CACHE_DIR": str(self.folder.with_suffix(".site")), "DVC_NO_ANALYTICS": "true"}
        command = [sys.executable, "-m", "dvc", *words, "--quiet"]
        return timed(lambda: subprocess.run(command, cwd=self.folder, env=os.environ | notes, check=True))

    def remove(self) -> None:
        """Delete everything."""
        for folder in (self.folder, self.remote, self.folder.with_suffix(".site")):
            shutil.rmtree(folder, ignore_errors=True)


def timed(act: Callable[[], object]) -> float:
    """Time an act, in seconds."""
    start = time.perf_counter()
    act()
    return time.perf_counter() - start


def name_of(index: int) -> Path:
    """Say where in a folder of photos an image lies."""
    return Path(f"class-{index % CLASSES}") / f"{index:07d}.jpg"


def draw(folder: Path, indices: range) -> None:
    """Draw images, each by its number."""
    for index in indices:
        field = np.random.default_rng(index).integers(0, 256, (FIELD, FIELD, 3), np.uint8)
        drawn = io.BytesIO()
        Image.fromarray(field).resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(drawn, "JPEG", quality=QUALITY)
        (folder / name_of(index)).write_bytes(drawn.getvalue())


def draw_all(root: Path, images: int) -> None:
    """Draw the images that are there, and those that arrive later."""
    jobs = []
    for name, indices in ((PHOTOS, range(images)), (ARRIVING, range(images, images + MORE))):
        for number in range(CLASSES):
            (root / name / f"class-{number}").mkdir(parents=True)
        jobs += [(root / name, indices[at : at + CHUNK]) for at in range(0, len(indices), CHUNK)]
    with ProcessPoolExecutor(cores()) as pool:
        list(pool.map(draw, *zip(*jobs, strict=True)))


def move(source: Path, target: Path, indices: range) -> None:
    """Move images from one folder of photos to another; they keep their times."""
    for index in indices:
        (source / name_of(index)).rename(target / name_of(index))


def pushed(repository: Repository) -> int:
    """Count the bytes on the remote."""
    return sum(path.stat().st_size for path in repository.remote.rglob("*") if path.is_file())


def transfer(repository: Repository) -> Figures:
    """Record, look, send and fetch."""
    figures = {START: repository.dvc("root"), ADD: repository.dvc("add", *repository.outs)}
    repository.commit()
    figures |= {STATUS: repository.dvc("status"), PUSH: repository.dvc("push")}
    clone = repository.clone()
    figures[PULL] = clone.dvc("pull")
    clone.remove()
    return figures


def send_more(repository: Repository) -> Figures:
    """Record and send what has arrived."""
    before = pushed(repository)
    figures = {MORE_ADD: repository.dvc("add", *repository.outs), MORE_PUSH: repository.dvc("push")}
    return figures | {SENT: (pushed(repository) - before) / 1e6}


def take_in(photos: Path, repository: Repository, scratch: Path, expected: tuple[int, int]) -> Figures:
    """Run ingest in a process of its own, which is to end with so many images, so many of them new."""
    command = [sys.executable, "-c", INGEST_CODE, str(photos), str(repository.folder), str(scratch)]
    start = time.perf_counter()
    said = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.split()
    seconds = time.perf_counter() - start
    images, new, rejected = map(int, said[:3])
    assert (images, new, rejected) == (*expected, 0), (
        f"{images} images, {new} new, {rejected} rejected; expected {expected}"
    )
    return {INGEST: seconds, CPU: float(said[3]), MEMORY: float(said[4])}


def measure_folder(root: Path, images: int) -> Figures:
    """Measure DVC on the plain folder, which is left as it was found."""
    arrived = range(images, images + MORE)
    repository = Repository(root / "plain", (PHOTOS,))
    repository.folder.mkdir()
    photos = (root / PHOTOS).rename(repository.folder / PHOTOS)
    repository.make()
    figures = transfer(repository)
    move(root / ARRIVING, photos, arrived)
    figures |= send_more(repository)
    move(photos, root / ARRIVING, arrived)
    photos.rename(root / PHOTOS)
    repository.remove()
    figures[ALL] = figures[ADD] + figures[PUSH]
    figures[MORE_ALL] = figures[MORE_ADD] + figures[MORE_PUSH]
    return figures


def measure_shards(root: Path, images: int) -> Figures:
    """Measure ingest, and DVC on what it writes."""
    arrived = range(images, images + MORE)
    repository = Repository(root / "shards", ("data/images", "data/dataset"))
    photos, scratch = root / PHOTOS, root / "scratch"
    repository.make()
    figures = take_in(photos, repository, scratch, (images, images)) | transfer(repository)
    figures[LOOK] = take_in(photos, repository, scratch, (images, 0))[INGEST]
    move(root / ARRIVING, photos, arrived)
    figures[MORE_INGEST] = take_in(photos, repository, scratch, (images + MORE, MORE))[INGEST]
    figures |= send_more(repository)
    move(photos, root / ARRIVING, arrived)
    repository.remove()
    shutil.rmtree(scratch)
    figures[ALL] = figures[INGEST] + figures[ADD] + figures[PUSH]
    figures[MORE_ALL] = figures[MORE_INGEST] + figures[MORE_ADD] + figures[MORE_PUSH]
    return figures


def medians(runs: list[Figures]) -> Figures:
    """Take the median of each row."""
    return {row: statistics.median(run[row] for run in runs) for row in runs[0]}


def measure(parent: Path, images: int, repeat: int) -> tuple[Figures, Figures]:
    """Draw the images, measure both ways, and print them side by side; returns the plain folder's and the shards'."""
    with tempfile.TemporaryDirectory(prefix="dvc-scale-", dir=parent) as temporary:
        root = Path(temporary).resolve()
        drawing = timed(lambda: draw_all(root, images))
        size = sum(path.stat().st_size for path in (root / PHOTOS).rglob("*.jpg"))
        print(f"\n{images:,} images, {size / 1e6:,.0f} MB in {CLASSES} classes, drawn in {drawing:.0f} s", flush=True)
        plain = medians([measure_folder(root, images) for _ in range(repeat)])
        shards = medians([measure_shards(root, images) for _ in range(repeat)])
    print(f"{'':<28}{'folder':>10}{'shards':>10}{'ratio':>8}   (seconds)")
    for row in ROWS:
        ratio = f"{plain[row] / shards[row]:>8.1f}" if row in plain else ""
        print(f"{row:<28}{say(plain.get(row))}{say(shards[row])}{ratio}", flush=True)
    print(f"ingest took in {images / shards[INGEST]:,.0f} images a second", flush=True)
    return plain, shards


def print_growth(measured: dict[int, tuple[Figures, Figures]]) -> None:
    """Print every row at every size, and how it grows from the smallest to the largest."""
    small, large = min(measured), max(measured)
    sizes = "".join(f"{images:>10,}" for images in measured) + f"{'grows':>8}"
    print(f"\nfrom {small:,} to {large:,} images, {large / small:.1f} times as many (seconds)")
    print(f"{'':<28}{'folder':>{len(sizes)}}{'shards':>{len(sizes)}}\n{'':<28}{sizes}{sizes}")
    for row in ROWS:
        cells = ""
        for way in (0, 1):
            values = [figures[way].get(row) for figures in measured.values()]
            first, last = measured[small][way].get(row), measured[large][way].get(row)
            cells += "".join(map(say, values)) + (f"{last / first:>8.1f}" if first and last else f"{'':>8}")
        print(f"{row:<28}{cells}")


def say(value: float | None) -> str:
    """Write a figure into its column; nothing where there is none."""
    return f"{'':>10}" if value is None else f"{value:>10,.1f}"


def main() -> None:
    """Measure each size, and print how the figures grow."""
    parser = argparse.ArgumentParser(description="Compare DVC on a folder of images and on ingest's shards of them.")
    parser.add_argument("--images", type=int, nargs="+", default=[50_000, 200_000])
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()), help="where to work, on a disk")
    parser.add_argument("--repeat", type=int, default=1, help="take medians of so many runs")
    arguments = parser.parse_args()
    needed = (max(arguments.images) + MORE) * BYTES_AN_IMAGE * COPIES / 2**30
    free = shutil.disk_usage(arguments.folder).free / 2**30
    print(f"{arguments.folder}: needs {needed:.1f} GiB, has {free:.1f} GiB free")
    if free < needed:
        sys.exit("too little: free some, name another folder by --folder, or fewer images by --images")
    measured = {images: measure(arguments.folder, images, arguments.repeat) for images in sorted(arguments.images)}
    if len(measured) > 1:
        print_growth(measured)


if __name__ == "__main__":
    main()

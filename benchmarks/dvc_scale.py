"""DVC with many small images: a plain folder compared with ingest's shards, and how both scale.

python -m benchmarks.dvc_scale [--images 50000 200000] [--folder DIR] [--repeat 1]    # 15 GiB free, most of an hour

Every row is the wall-clock time of a process, start-up included, with a warm page cache. The remote is a folder on the
same disk; a pull goes into a clone with an empty cache.
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

from benchmarks.project import size_of
from rootstock.system.parallel import cores

CLASSES, MORE = 10, 1000
# A grid of 40 by 40 random colours, enlarged: 10.0 kB as JPEG, no near duplicates, 0.4 ms to draw.
FIELD, SIDE, QUALITY = 40, 160, 81
CHUNK = 1000  # images drawn per task
BYTES_PER_IMAGE, COPIES = 12_288, 6  # in blocks of 4 KiB; photos, shards, cache, remote, a clone and its cache

PHOTOS, ARRIVING = "photos", "arriving"
ADD, STATUS, PUSH, PULL = "dvc add", "dvc status", "dvc push", "dvc pull"
START, INGEST, UNCHANGED = "dvc root (start-up only)", "ingest", "ingest, nothing new"
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
    UNCHANGED,
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
result = ingest.ingest(settings, 0, repository / "data/images", repository / "data/dataset", scratch)
used = resource.getrusage(resource.RUSAGE_SELF)
print(result.images, result.new, result.rejected, used.ru_utime + used.ru_stime, used.ru_maxrss / 2**10)
"""

Figures = dict[str, float]  # row of the table -> seconds, or the unit that the row names


@dataclass(frozen=True)
class Repository:
    """A git and DVC repository with a local folder as remote; DVC's site cache is kept beside it."""

    folder: Path
    outs: tuple[str, ...]

    @property
    def remote(self) -> Path:
        """Return the folder that serves as the remote."""
        return self.folder.with_suffix(".remote")

    def create(self) -> None:
        """Create the repository in a folder that may contain files."""
        self.folder.mkdir(exist_ok=True)
        self.git("init", "-q")
        self.dvc("init")
        self.dvc("config", "core.check_update", "false")
        self.dvc("remote", "add", "--default", "remote", str(self.remote))

    def clone(self) -> "Repository":
        """Clone the repository with git."""
        other = Repository(self.folder.with_name(f"{self.folder.name}-clone"), self.outs)
        self.git("clone", "-q", ".", str(other.folder))
        return other

    def git(self, *words: str) -> None:
        """Run git."""
        who = ("-c", "user.name=Rootstock", "-c", "user.email=benchmark@example.invalid")
        subprocess.run(["git", *who, *words], cwd=self.folder, check=True)

    def commit(self) -> None:
        """Commit the result of `dvc add` to git."""
        self.git("add", "--all")
        self.git("commit", "-qm", "Images")

    def dvc(self, *words: str) -> float:
        """Run DVC and return seconds; a failure, or a changed file in `status`, raises."""
        settings = {"DVC_SITE_CACHE_DIR": str(self.folder.with_suffix(".site")), "DVC_NO_ANALYTICS": "true"}
        command = [sys.executable, "-m", "dvc", *words, "--quiet"]
        return timed(lambda: subprocess.run(command, cwd=self.folder, env=os.environ | settings, check=True))

    def remove(self) -> None:
        """Delete everything."""
        for folder in (self.folder, self.remote, self.folder.with_suffix(".site")):
            shutil.rmtree(folder, ignore_errors=True)


def timed(act: Callable[[], object]) -> float:
    """Return the seconds that a call takes."""
    start = time.perf_counter()
    act()
    return time.perf_counter() - start


def name_of(index: int) -> Path:
    """Return the path of an image within a folder of photos."""
    return Path(f"class-{index % CLASSES}") / f"{index:07d}.jpg"


def draw(folder: Path, indices: range) -> None:
    """Draw images by number."""
    for index in indices:
        field = np.random.default_rng(index).integers(0, 256, (FIELD, FIELD, 3), np.uint8)
        drawn = io.BytesIO()
        Image.fromarray(field).resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(drawn, "JPEG", quality=QUALITY)
        (folder / name_of(index)).write_bytes(drawn.getvalue())


def draw_all(root: Path, images: int) -> None:
    """Draw the initial images and those that arrive later."""
    jobs = []
    for name, indices in ((PHOTOS, range(images)), (ARRIVING, range(images, images + MORE))):
        for number in range(CLASSES):
            (root / name / f"class-{number}").mkdir(parents=True)
        jobs += [(root / name, indices[at : at + CHUNK]) for at in range(0, len(indices), CHUNK)]
    with ProcessPoolExecutor(cores()) as pool:
        list(pool.map(draw, *zip(*jobs, strict=True)))


def move(source: Path, target: Path, indices: range) -> None:
    """Move images between folders of photos, keeping their modification times."""
    for index in indices:
        (source / name_of(index)).rename(target / name_of(index))


def transfer(repository: Repository) -> Figures:
    """Measure dvc add, status, push and pull."""
    figures = {START: repository.dvc("root"), ADD: repository.dvc("add", *repository.outs)}
    repository.commit()
    figures |= {STATUS: repository.dvc("status"), PUSH: repository.dvc("push")}
    clone = repository.clone()
    figures[PULL] = clone.dvc("pull")
    clone.remove()
    return figures


def send_more(repository: Repository) -> Figures:
    """Measure dvc add and push of the new images."""
    before = size_of(repository.remote)
    figures = {MORE_ADD: repository.dvc("add", *repository.outs), MORE_PUSH: repository.dvc("push")}
    return figures | {SENT: (size_of(repository.remote) - before) / 1e6}


def run_ingest(photos: Path, repository: Repository, scratch: Path, expected: tuple[int, int]) -> Figures:
    """Run ingest in a separate process; expected are the numbers of images and of new ones."""
    command = [sys.executable, "-c", INGEST_CODE, str(photos), str(repository.folder), str(scratch)]
    start = time.perf_counter()
    output = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.split()
    seconds = time.perf_counter() - start
    images, new, rejected = map(int, output[:3])
    assert (images, new, rejected) == (*expected, 0), (
        f"{images} images, {new} new, {rejected} rejected; expected {expected}"
    )
    return {INGEST: seconds, CPU: float(output[3]), MEMORY: float(output[4])}


def measure_folder(root: Path, images: int) -> Figures:
    """Measure DVC on the plain folder, which is restored afterwards."""
    arrived = range(images, images + MORE)
    repository = Repository(root / "plain", (PHOTOS,))
    repository.folder.mkdir()
    photos = (root / PHOTOS).rename(repository.folder / PHOTOS)
    repository.create()
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
    """Measure ingest, and DVC on its outputs."""
    arrived = range(images, images + MORE)
    repository = Repository(root / "shards", ("data/images", "data/dataset"))
    photos, scratch = root / PHOTOS, root / "scratch"
    repository.create()
    figures = run_ingest(photos, repository, scratch, (images, images)) | transfer(repository)
    figures[UNCHANGED] = run_ingest(photos, repository, scratch, (images, 0))[INGEST]
    move(root / ARRIVING, photos, arrived)
    figures[MORE_INGEST] = run_ingest(photos, repository, scratch, (images + MORE, MORE))[INGEST]
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
    """Draw the images, measure folder and shards, and print both; return the figures."""
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
        print(f"{row:<28}{format_figure(plain.get(row))}{format_figure(shards[row])}{ratio}", flush=True)
    print(f"ingest: {images / shards[INGEST]:,.0f} images/s", flush=True)
    return plain, shards


def print_growth(measured: dict[int, tuple[Figures, Figures]]) -> None:
    """Print every row at every size, and its growth from the smallest to the largest."""
    small, large = min(measured), max(measured)
    sizes = "".join(f"{images:>10,}" for images in measured) + f"{'growth':>8}"
    print(f"\nfrom {small:,} to {large:,} images, {large / small:.1f} times as many (seconds)")
    print(f"{'':<28}{'folder':>{len(sizes)}}{'shards':>{len(sizes)}}\n{'':<28}{sizes}{sizes}")
    for row in ROWS:
        cells = ""
        for column in (0, 1):
            values = [figures[column].get(row) for figures in measured.values()]
            first, last = measured[small][column].get(row), measured[large][column].get(row)
            cells += "".join(map(format_figure, values)) + (f"{last / first:>8.1f}" if first and last else f"{'':>8}")
        print(f"{row:<28}{cells}")


def format_figure(value: float | None) -> str:
    """Format a figure for its column; blank if there is none."""
    return f"{'':>10}" if value is None else f"{value:>10,.1f}"


def main() -> None:
    """Measure each size, and print the growth."""
    parser = argparse.ArgumentParser(description="Compare DVC on a folder of images and on ingest's shards.")
    parser.add_argument("--images", type=int, nargs="+", default=[50_000, 200_000])
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()), help="working folder, on a disk")
    parser.add_argument("--repeat", type=int, default=1, help="number of runs; medians are reported")
    arguments = parser.parse_args()
    needed = (max(arguments.images) + MORE) * BYTES_PER_IMAGE * COPIES / 2**30
    free = shutil.disk_usage(arguments.folder).free / 2**30
    print(f"{arguments.folder}: needs {needed:.1f} GiB, has {free:.1f} GiB free")
    if free < needed:
        sys.exit("not enough disk space: free some, choose another --folder, or fewer --images")
    measured = {images: measure(arguments.folder, images, arguments.repeat) for images in sorted(arguments.images)}
    if len(measured) > 1:
        print_growth(measured)


if __name__ == "__main__":
    main()

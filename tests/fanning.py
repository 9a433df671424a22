"""A fan-out with work that is seen by its files, started as a stage or by a flow; tests of clusters import it.

python -m tests.fanning dask stage <folder>
"""

import json
import os
import signal
import sys
from pathlib import Path

from rootstock.system.errors import SourceError

SHARDS = [f"{number:06d}" for number in range(8)]
KILLS, FAILS, IMAGES = SHARDS[3], "fails", 5


def work(folder: Path, shard: str) -> int:
    """Write a small file; the first try of one shard kills its worker, and another one has an error."""
    with (folder / f"{shard}.tries").open("a") as tries:
        tries.write(f"{os.getpid()}\n")
    if shard == KILLS and len((folder / f"{shard}.tries").read_text().split()) == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    if shard == FAILS:
        raise SourceError(f"{folder / shard}: holds 3 of the 5 images wanted")
    (folder / f"{shard}.parquet").write_text(shard)
    return IMAGES


def main(runner: str, entry_point: str, folder: Path, *shards: str) -> None:
    from tasks.bridge.fan_out import fan_out

    done = []

    def stage() -> None:
        fan_out(work, folder, shards or SHARDS, runner, None, 2, done.append)

    if entry_point == "stage":  # as python -m tasks.extract
        stage()
    else:
        from prefect import flow, task

        flow(lambda: task(stage, name="extract").submit().result(), name="pipeline")()
    print(json.dumps(sum(done)))


if __name__ == "__main__":
    try:
        main(sys.argv[1], sys.argv[2], Path(sys.argv[3]), *sys.argv[4:])
    except SourceError as error:
        sys.exit(f"{type(error).__name__}: {error}")

"""Several processes train one model: each has its share of every mini-batch, and the result is that of one process."""

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from torch.distributed import TCPStore

from rootstock.system.errors import ParamsError, RootstockError
from rootstock.system.parallel import cores
from rootstock.training import ranks
from rootstock.training.ranks import Ranks
from tests.fine_tuning import copied, stages, start, tune

needs_two_cores = pytest.mark.skipif(cores() < 2, reason="one process per core")


@given(images=st.integers(1, 200), batch_size=st.integers(1, 64), size=st.integers(1, 8), seed=st.integers(0, 99))
def test_each_image_of_a_mini_batch_counts_in_exactly_one_process(images, batch_size, size, seed):
    order = np.random.default_rng(seed).permutation(images)
    sizes = [min(batch_size, images - start) for start in range(0, images, batch_size)]
    shares = [Ranks(rank, size).share(order, sizes) for rank in range(size)]
    for number, batch in enumerate(np.split(order, np.cumsum(sizes)[:-1])):
        counted = [indices[:count] for indices, count in (share[number] for share in shares)]
        assert sorted(np.concatenate(counted)) == sorted(batch)
        lengths = [len(share[number][0]) for share in shares]
        assert min(lengths) >= 1 and max(lengths) <= Ranks(0, size).largest_share(batch_size)
        assert max(map(len, counted)) - min(map(len, counted)) <= 1  # nobody waits for a larger share


@pytest.mark.slow
@needs_two_cores
def test_two_processes_have_the_loss_curve_of_one_with_the_same_mini_batches(base, tmp_path):
    """Also where the last mini-batch has a single image, which is no share for the second process.

    At a higher learning rate AdamW magnifies rounding, as it divides each gradient by its size: at 1e-4 the validation
    loss of two processes differs by 3e-4, and so does that of one process which computes its mini-batches in two parts.
    """
    settings = stages(("last_block", 1), ("all", 2), batch_size=71, augment="crop", lr=2e-5)
    alone, together = start(base), start(base)
    expected = tune(alone, base, settings, tmp_path / "alone")
    found = tune(together, base, settings.model_copy(update={"processes": 2}), tmp_path / "together")
    assert [(e.stage, e.unfrozen, e.epoch) for e in found] == [(e.stage, e.unfrozen, e.epoch) for e in expected]
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.train_loss == pytest.approx(theirs.train_loss, rel=1e-4)
        assert ours.val_loss == pytest.approx(theirs.val_loss, rel=1e-4)
        assert ours.val_accuracy == theirs.val_accuracy
    for name, value in copied(alone).items():
        torch.testing.assert_close(copied(together)[name], value, rtol=1e-4, atol=1e-6)


@needs_two_cores
@pytest.mark.slow
def test_an_error_in_a_process_is_the_one_that_a_single_process_raises(base, tmp_path):
    settings = stages(("all", 1), lr=0.99, batch_size=16, processes=2)
    model = start(base)
    with torch.no_grad():
        model.head.weight.fill_(float("inf"))
    with pytest.raises(ParamsError, match="the training loss is NaN or infinite; expected a lower lr"):
        tune(model, base, settings, tmp_path / "checkpoint")


@needs_two_cores
@pytest.mark.slow
def test_a_process_that_is_killed_ends_the_run_in_one_sentence():
    with pytest.raises(RootstockError, match=r"process 1 of finetune.processes 2 ended with status -9: .*SIGKILL"):
        ranks.run_in_processes(2, _kill_the_second)


def _kill_the_second() -> None:
    with ranks.joined() as together:
        if together.rank == 1:
            os.kill(os.getpid(), 9)
        together.sum(torch.zeros(1))


def test_more_processes_than_gpus_or_cores_are_refused():
    with pytest.raises(ParamsError, match=r"finetune.processes is 1000, but this machine has .* expected at most one"):
        ranks.check(1000)


def test_processes_do_not_share_mini_batches_where_each_would_have_its_own_statistics(base, tmp_path):
    model = start(base)
    model.frozen_statistics = False  # as with random weights
    with pytest.raises(ParamsError, match=r"finetune.processes is more than 1, and .* batch norm.* expected one"):
        tune(model, base, stages(("all", 1), processes=2), tmp_path / "checkpoint")


@pytest.mark.slow
def test_torchrun_starts_the_processes_too(tmp_path):
    """As on several hosts, where each host starts its own."""
    script = tmp_path / "add.py"
    script.write_text(
        "import torch\n"
        "from rootstock.training import ranks\n"
        "with ranks.joined() as together:\n"
        "    total = int(together.sum(torch.tensor(together.rank + 1)))\n"
        "    print(f'sum {total} of {together.size}\\n', end='', flush=True)\n"
    )
    command = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    environment = {**os.environ, "PYTHONPATH": str(Path.cwd())}
    done = subprocess.run([sys.executable, "-m", *command], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["sum 3 of 2"] * 2


def joined_by_threads(port: int, size: int, late: int | None = None) -> list[str]:
    """Let several processes, here threads, agree on an attempt; return the keys that each of them sees of the first."""

    def join(rank: int) -> str:
        if rank == late:
            time.sleep(0.3)
        store = ranks.of_this_attempt(TCPStore("localhost", port, is_master=False), rank, size)
        store.set(f"address/{rank}", f"{time.monotonic()}")
        return store.get("address/0").decode()

    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(join, range(size)))


@pytest.mark.parametrize("late", [None, 0, 1, 2])
@pytest.mark.parametrize("size", [1, 3])
def test_what_earlier_processes_left_in_the_store_is_not_seen(size, late):
    server = TCPStore("localhost", 0, is_master=True)
    server.set("address/0", "gone")
    server.set("rootstock/here/2", "one that torchrun has killed")
    attempts = [joined_by_threads(server.port, size, late) for _ in range(3)]
    assert all(len(set(seen)) == 1 for seen in attempts)
    assert len({seen[0] for seen in attempts} - {"gone"}) == 3


def test_processes_that_never_come_are_an_error(monkeypatch):
    monkeypatch.setattr(ranks, "JOIN_S", 0.2)
    server = TCPStore("localhost", 0, is_master=True)
    with pytest.raises(RootstockError, match="1 of 2 processes have not joined the others in time"):
        ranks.of_this_attempt(server, 0, 2)


@pytest.mark.slow
def test_processes_that_torchrun_restarts_find_each_other_however_long_one_takes(tmp_path):
    script = tmp_path / "again.py"
    script.write_text(
        "import os, time, torch\n"
        "from rootstock.training import ranks\n"
        "again = os.environ['TORCHELASTIC_RESTART_COUNT'] == '1'\n"
        "if again and os.environ['RANK'] == '0':\n"
        "    time.sleep(3)  # the other one comes first, and could read where this one was before\n"
        "with ranks.joined() as together:\n"
        "    total = int(together.sum(torch.tensor(together.rank + 1)))\n"
        "    if not again and together.rank == 1:\n"
        "        os.kill(os.getpid(), 9)\n"
        "    total += int(together.sum(torch.tensor(0)))\n"
        "    print(f'sum {total} of {together.size}\\n', end='', flush=True)\n"
    )
    command = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--max-restarts", "1", str(script)]
    environment = {**os.environ, "PYTHONPATH": str(Path.cwd())}
    done = subprocess.run(
        [sys.executable, "-m", *command], env=environment, capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout.splitlines() == ["sum 3 of 2"] * 2

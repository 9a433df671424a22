"""The memory budget for decoding: threads share it, and of processes one at a time takes more than its part; where
Arrow's memory is from; and memory that is used again."""

import ctypes
import subprocess
import sys
import threading
import time
from itertools import pairwise

import pytest

from rootstock.system import memory
from rootstock.system.memory import DECODING_BUDGET, MemoryBudget
from rootstock.system.parallel import cores
from rootstock.system.processes import ordered_map_in_processes
from tests.imports import ROOT

MIB = 2**20


def hold(size: int) -> tuple[float, float]:
    with DECODING_BUDGET.take(size):
        start = time.monotonic()
        time.sleep(0.1)
        return start, time.monotonic()


def overlap(size: int) -> bool:
    spans = sorted(ordered_map_in_processes(hold, [size] * 4 * cores(), MIB))
    return any(next_start < end for (_, end), (next_start, _) in pairwise(spans))


def test_only_one_process_at_a_time_has_a_request_that_is_larger_than_its_part():
    assert overlap(memory.LEAST_BYTES)  # photos
    assert not overlap(memory.BUDGET_BYTES)


def test_threads_wait_until_enough_is_free_and_the_largest_request_gets_all():
    budget, held, most = MemoryBudget(10), 0, 0
    lock = threading.Lock()

    def take(size: int) -> None:
        nonlocal held, most
        with budget.take(size):
            with lock:
                held += min(size, 10)
                most = max(most, held)
            time.sleep(0.01)
            with lock:
                held -= min(size, 10)

    threads = [threading.Thread(target=take, args=(size,)) for size in (3, 4, 5, 99, 2, 6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most <= 10 and budget.free == 10


def test_a_part_is_at_least_a_photo_and_at_most_all(tmp_path):
    parts = {}
    for processes in (1, 2, 64):
        budget = MemoryBudget(memory.BUDGET_BYTES)
        budget.share(processes, tmp_path / "lock")
        parts[processes] = budget.size
    assert parts == {1: memory.BUDGET_BYTES, 2: memory.BUDGET_BYTES // 2, 64: memory.LEAST_BYTES}


@pytest.mark.skipif(sys.platform != "linux", reason="other wheels of pyarrow may lack it")
def test_stages_allocate_by_jemalloc_which_gives_back_what_is_freed():
    asked = "import {}, pyarrow; print(pyarrow.default_memory_pool().backend_name)"
    for module in ("tasks.ingest", "flows.tidy"):
        done = subprocess.run([sys.executable, "-c", asked.format(module)], cwd=ROOT, capture_output=True, text=True)
        assert done.stdout == "jemalloc\n"


STEPS = """
import ctypes, resource, sys
from contextlib import nullcontext
import torch
from rootstock.system import memory

def step():
    blocks = [torch.ones(2**23) for _ in range(8)]  # 32 MB each
    return sum(block.sum() for block in blocks)

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096

ctypes.CDLL(None).prctl(41, 1, 0, 0, 0)  # PR_SET_THP_DISABLE: a fault may be for two megabytes
before = resident()
with memory.reused() if sys.argv[1] == "reused" else nullcontext():
    for _ in range(2):
        step()
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        step()
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults
print(faults, resident() - before)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="needs glibc")
def test_memory_is_reused_within_the_block_and_given_back_after_it():
    def run(how: str) -> list[int]:
        done = subprocess.run([sys.executable, "-c", STEPS, how], cwd=ROOT, capture_output=True, text=True, check=True)
        return [int(number) for number in done.stdout.split()]

    (faults, left), (faults_without, _) = run("reused"), run("as it is")
    assert faults_without > 10_000 and faults < faults_without / 20
    assert left < 100 * MIB  # of 256


GAPS = """
import ctypes, sys
from contextlib import nullcontext
import numpy as np
from rootstock.system import memory

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096

memory.release_unused()  # imports pyarrow
np.ones(2**21)  # 16 MB, freed at once: from now on glibc takes smaller blocks from its heap
before = resident()
with memory.given_back() if sys.argv[1] == "given back" else nullcontext():
    pairs = [(np.ones(2**17), np.ones(2**10)) for _ in range(100)]  # a megabyte, and 8 KB that stay
    stay = [small for _, small in pairs]
    del pairs
    print(resident() - before)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="needs glibc")
def test_large_blocks_leave_no_gaps_where_they_are_given_back():
    def left(how: str) -> int:
        return int(subprocess.check_output([sys.executable, "-c", GAPS, how], cwd=ROOT, text=True))

    assert left("as it is") > 50 * MIB
    assert left("given back") < 5 * MIB

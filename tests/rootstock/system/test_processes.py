"""The parallel map over processes: results as by threads, with arrays in shared memory."""

import os
import signal
import time
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np
import pytest

from rootstock.system import processes
from rootstock.system.errors import SourceError
from rootstock.system.parallel import cores
from rootstock.system.processes import ordered_map_in_processes

MIB = 2**20
HELD: list[np.ndarray] = []


def squares(number: int) -> tuple[int, int, list[np.ndarray]]:
    return os.getpid(), number, [np.full((100, number + 1), number, np.uint8), np.arange(number) ** 2]


def fails_at_three(number: int) -> int:
    if number == 3:
        raise SourceError("the third is damaged")
    return number


def dies(number: int) -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return number


def grows(number: int) -> int:
    HELD.append(np.ones(160 * MIB, np.uint8) if len(HELD) < 2 else np.zeros(0))
    time.sleep(0.6)  # memory is checked once a second
    return os.getpid()


@pytest.mark.parametrize(
    ("cores", "images", "expected"), [(4, 10_000, True), (3, 10**9, False), (4, 9_999, False), (64, 10_000, True)]
)
def test_processes_pay_from_four_cores_and_ten_thousand_images_on(monkeypatch, cores, images, expected):
    monkeypatch.setattr(processes, "cores", lambda: cores)
    assert processes.pay(images) == expected


def test_processes_are_reused_after_their_memory_has_grown():
    assert len(set(ordered_map_in_processes(grows, range(8 * cores()), MIB))) == cores()


@pytest.mark.parametrize("bytes_each", [MIB, 64, 0])  # what does not fit into shared memory comes through the pipe
def test_results_come_in_order_and_their_arrays_are_never_overwritten(bytes_each):
    found = list(ordered_map_in_processes(squares, range(40), bytes_each, window=3))
    assert [number for _, number, _ in found] == list(range(40))
    assert os.getpid() not in {process for process, _, _ in found}
    for _, number, (filled, squared) in found:  # none was overwritten by a later one
        assert filled.shape == (100, number + 1) and (filled == number).all()
        assert squared.tolist() == [x * x for x in range(number)]
        squared[:1] = 7  # and each may be changed


def test_an_exception_is_raised_in_order_and_the_next_map_works():
    got = []
    with pytest.raises(SourceError, match="the third is damaged"):
        got.extend(ordered_map_in_processes(fails_at_three, range(10), MIB, window=2))
    assert got == [0, 1, 2]
    assert list(ordered_map_in_processes(fails_at_three, range(3), MIB)) == [0, 1, 2]


def test_stopping_early_leaves_no_shared_memory_behind():
    numbers = ordered_map_in_processes(squares, iter(range(10**9)), MIB, window=4)
    assert next(numbers)[1] == 0
    numbers.close()
    links = [path.readlink() for path in Path("/proc/self/fd").iterdir() if path.is_symlink()]
    assert not [link for link in links if link.is_relative_to(processes.SHARED_MEMORY) and "deleted" in link.name]


def test_a_killed_process_is_an_error_and_the_next_map_starts_new_ones():
    with pytest.raises(BrokenProcessPool):
        list(ordered_map_in_processes(dies, range(3), MIB))
    assert list(ordered_map_in_processes(fails_at_three, range(3), MIB)) == [0, 1, 2]


def test_processes_that_died_between_two_maps_are_replaced():
    before = {process for process, _, _ in ordered_map_in_processes(squares, range(8), MIB)}
    for process in before:
        os.kill(process, signal.SIGKILL)
    assert before.isdisjoint(process for process, _, _ in ordered_map_in_processes(squares, range(8), MIB))


@pytest.mark.parametrize("why", ["none", "too little"])
def test_threads_replace_processes_if_shared_memory_is_missing_or_too_small(why, monkeypatch, tmp_path, caplog):
    caplog.set_level("INFO")
    if why == "none":
        monkeypatch.setattr(processes, "SHARED_MEMORY", str(tmp_path / "none"))
    found = list(ordered_map_in_processes(squares, range(3), MIB if why == "none" else 2**50, window=3))
    assert {process for process, _, _ in found} == {os.getpid()}
    assert "falling back to threads" in caplog.text


def test_a_process_that_is_late_does_not_write_into_the_file_that_has_the_number_by_now(tmp_path):
    with (tmp_path / "one").open("wb+") as file:
        file.write(bytes(10))
        file.flush()
        path, inode = f"/proc/{os.getpid()}/fd/{file.fileno()}", os.fstat(file.fileno()).st_ino
        assert len(processes._attached(path, inode)) == 10
        with pytest.raises(FileNotFoundError, match="is another file by now"):
            processes._attached(path, inode + 1)

"""Fine-tuning in several processes, one per GPU: they share each mini-batch and average their gradients.

They are started here, or by torchrun on one or several hosts, and communicate by NCCL on GPUs, by gloo on CPUs.
"""

import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, distributed
from torch._C._distributed_c10d import PrefixStore, Store
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch
from torch.distributed.rendezvous import rendezvous

from rootstock.system import devices
from rootstock.system.errors import ParamsError, RootstockError
from rootstock.system.parallel import cores, rank

JOIN_S = 1800.0  # after which processes that have not come are given up, as torch does


@dataclass(frozen=True)
class Ranks:
    """The number of a process among those that train one model together, and how many they are."""

    rank: int = 0
    size: int = 1

    def share(self, order: NDArray[np.int64], sizes: Sequence[int]) -> list[tuple[NDArray[np.int64], int]]:
        """Divide mini-batches among the processes; all have a share of each, if need be of one that does not count.

        Args:
            order: indices of images, mini-batch by mini-batch.
            sizes: of the mini-batches.

        Returns:
            For each mini-batch the indices of this process, at least one, and how many of them count.
        """
        shares = []
        for batch in np.split(order, np.cumsum(sizes)[:-1]):
            own = batch[self.rank :: self.size]
            shares.append((own, len(own)) if len(own) else (batch[:1], 0))
        return shares

    def largest_share(self, batch_size: int) -> int:
        """Return the size of the largest share of a mini-batch."""
        return -(-batch_size // self.size)

    def sum(self, value: Tensor) -> Tensor:
        """Add up a tensor over all processes."""
        if self.size > 1:
            value = value.clone()
            distributed.all_reduce(value)
        return value

    def first_says(self, yes: bool, device: torch.device) -> bool:
        """Return in every process what the first one says; all have to ask."""
        if self.size == 1:
            return yes
        return bool(self.sum(torch.tensor(float(yes and self.rank == 0), device=device)) > 0)

    def threads(self) -> int:
        """Return this process's share of the cores."""
        return max(1, cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


ALONE = Ranks()


def started_by_torchrun() -> bool:
    """Check whether this process is one of several that train together."""
    return distributed.is_torchelastic_launched()


def world_size() -> int:
    """Return how many processes train together with this one."""
    return int(os.environ["WORLD_SIZE"]) if started_by_torchrun() else 1


@contextmanager
def joined() -> Iterator[Ranks]:
    """Join the other processes, if there are any, for the time of a block."""
    if not started_by_torchrun():
        yield ALONE
        return
    on_gpu = devices.device().type == "cuda"
    if on_gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    store, number, size = next(rendezvous("env://"))
    distributed.init_process_group(
        "nccl" if on_gpu else "gloo", store=of_this_attempt(store, number, size), rank=number, world_size=size
    )
    ranks, threads = Ranks(distributed.get_rank(), distributed.get_world_size()), torch.get_num_threads()
    try:
        torch.set_num_threads(ranks.threads())
        yield ranks
    finally:
        torch.set_num_threads(threads)
        distributed.destroy_process_group()


def of_this_attempt(store: Store, rank: int, size: int) -> Store:
    """Return a store in which the processes find nothing of those that were here before.

    torchrun's store outlives the processes that it restarts, and with it the addresses at which they could be reached,
    which a new process might read before the other one has written its own (pytorch/pytorch#135712, #167288). How often
    it has restarted them is known on each host alone. So they agree on a name: each leaves a word of its own, to which
    the first one answers until all have heard it.
    """
    if rank > 0:
        own = uuid4().hex
        store.set(f"rootstock/here/{rank}", own)
        name = store.get(f"rootstock/name/{own}").decode()  # waits for it
        store.set(f"rootstock/heard/{name}/{rank}", "")
        return PrefixStore(name, store)
    name, missing = uuid4().hex, set(range(1, size))
    end = time.monotonic() + JOIN_S
    while missing:
        for other in missing.copy():
            if store.check([f"rootstock/here/{other}"]):  # perhaps of one that was here before
                store.set(f"rootstock/name/{store.get(f'rootstock/here/{other}').decode()}", name)
            if store.check([f"rootstock/heard/{name}/{other}"]):
                missing.discard(other)
        if time.monotonic() > end:
            raise RootstockError(f"fine_tune: {len(missing)} of {size} processes have not joined the others in time.")
        time.sleep(0.02 if missing else 0)
    return PrefixStore(name, store)


def check(processes: int) -> None:
    """Check that there is a GPU for each process; without GPUs, a core.

    Raises:
        ParamsError: there are fewer.
    """
    gpus = torch.cuda.device_count()
    there, kind = (gpus, "GPUs") if gpus else (cores(), "cores")
    if processes > there:
        raise ParamsError(
            f"params.yaml: finetune.processes is {processes}, but this machine has {there} {kind}; expected at most "
            "one process for each."
        )


def run_in_processes(processes: int, function: Callable[..., Any], *arguments: object) -> None:
    """Call a function in several new processes that can join each other.

    Raises:
        RootstockError: what the function raised, if it was one; a process was killed.
    """
    check(processes)
    # torch warns that processes started by a thread may outlive it; they end with it (PR_SET_PDEATHSIG, set by torch).
    logging.getLogger("torch.distributed.elastic").setLevel(logging.ERROR)
    settings = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=processes, run_id=uuid4().hex, rdzv_backend="c10d",
        rdzv_endpoint="localhost:0", max_restarts=0, start_method="spawn", monitor_interval=0.1,
    )  # fmt: skip
    try:
        outcomes = elastic_launch(settings, _outcome)(logging.getLogger().level, function, arguments)
    except ChildFailedError as error:
        first, failure = error.get_first_failure()
        raise RootstockError(
            f"fine_tune: process {first} of finetune.processes {processes} ended with status {failure.exitcode}: "
            f"{str(failure.message).splitlines()[-1] if failure.message else 'it was killed'}"
        ) from error
    if failed := next(filter(None, outcomes.values()), None):
        raise failed


def _outcome(level: int, function: Callable[..., Any], arguments: Sequence[object]) -> RootstockError | None:
    """Call the function in a new process; return the error that a person should read."""
    logging.basicConfig(level=level if rank() == 0 else logging.ERROR, format="%(message)s", stream=sys.stderr)
    try:
        function(*deepcopy(arguments))  # tensors come in memory that all processes share
    except RootstockError as error:
        return error
    return None

"""Checkpoints of fine-tuning, from which a run resumes."""

import logging
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rootstock.backbones import state_dicts
from rootstock.system.errors import DamagedError
from rootstock.system.files import reading, replacing

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Epoch:
    """One row of history.parquet."""

    stage: int
    unfrozen: str
    epoch: int
    train_loss: float
    val_loss: float
    val_accuracy: float


@dataclass(frozen=True)
class RatePoint:
    """A step of a learning-rate range test: one row of learning_rates.parquet. The loss is the smoothed one."""

    stage: int
    lr: float
    loss: float


@dataclass(frozen=True)
class Within:
    """What has been done of an epoch: steps, sum of losses, images, and the states of random generators after it."""

    steps: int = 0
    loss: float = 0.0
    images: int = 0
    random: list[Tensor] = field(default_factory=list)  # of the CPU, then of the GPU


@dataclass
class TrainingState:
    """The progress of a run: what is completed, best weights so far, optimiser and gradient scaler."""

    stage: int = 0
    epoch: int = 0
    history: list[Epoch] = field(default_factory=list)
    kept: dict[int, dict[str, Tensor]] = field(default_factory=dict)  # of the best epochs, by place in the history
    optimiser: dict[str, Any] | None = None
    scaler: dict[str, Any] = field(default_factory=dict)  # empty but in float16
    halved: int | None = None  # the stage that goes on at half its learning rate
    within: Within | None = None  # of the epoch that is not complete
    ended: list[int] = field(default_factory=list)  # entries of params.yaml with `auto` whose next depth is not tried
    losses: Tensor | None = None  # of the validation images (n,), after the last depth of an `auto`
    seconds: list[float] = field(default_factory=list)  # of each epoch, with what went before it in its stage
    rates: list[RatePoint] = field(default_factory=list)  # of the range tests of stages with `lr: auto`
    average: list[Tensor] | None = None  # moving average of the stage's trained weights
    parts: int = 1  # of a mini-batch, where memory is short; not saved: another machine may have more

    @property
    def best(self) -> dict[str, Tensor] | None:
        """Return the weights of the best epoch so far; None before the first."""
        return next(iter(self.kept.values()), None)


class Saver:
    """Writes checkpoints, and says when the next one is due, so that writing takes at most a tenth of the time."""

    def __init__(self, write: Callable[[], None]) -> None:
        self._write, self._ended, self._took = write, time.monotonic(), 0.0

    def __call__(self) -> None:
        """Write a checkpoint."""
        begin = time.monotonic()
        self._write()
        self._ended = time.monotonic()
        self._took = self._ended - begin

    def is_due(self, seconds: float) -> bool:
        """Whether so much time, or, if the last one took long, nine times that, has passed since it; 0 is always."""
        return time.monotonic() - self._ended >= (max(seconds, 9 * self._took) if seconds else 0)


def save(path: Path, fingerprint: str, state: TrainingState, model: nn.Module) -> None:
    """Write a checkpoint: the state, the current weights, and the fingerprint of all inputs."""
    content = {
        "fingerprint": fingerprint,
        "model": model.state_dict(),
        "stage": state.stage,
        "epoch": state.epoch,
        "history": [asdict(epoch) for epoch in state.history],
        "kept": state.kept,
        "optimiser": state.optimiser,
        "scaler": state.scaler,
        "halved": state.halved,
        "within": vars(state.within) if state.within else None,
        "ended": state.ended,
        "losses": state.losses,
        "seconds": state.seconds,
        "rates": [asdict(point) for point in state.rates],
        "average": state.average,
    }
    with replacing(path) as temporary:
        torch.save(content, temporary)


def load(path: Path, fingerprint: str, model: nn.Module, device: torch.device) -> TrainingState:
    """Load a checkpoint into `model`; without one, or with a damaged or different one, return an empty state."""
    if not path.exists():
        return TrainingState()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    try:
        with reading(path):
            content = torch.load(path, map_location=device, weights_only=True)
            if content["fingerprint"] != fingerprint:
                return TrainingState()
            state_dicts.copy_state(model, content["model"])
            history = [Epoch(**epoch) for epoch in content["history"]]
            kept = {
                epoch: {name: value.cpu() for name, value in weights.items()}
                for epoch, weights in content["kept"].items()
            }
            optimiser = content["optimiser"]
            scaler, halved = dict(content["scaler"]), content["halved"]
            within = Within(**content["within"]) if content["within"] else None
            place = int(content["stage"]), int(content["epoch"])
            ended, losses = list(content["ended"]), content["losses"]
            losses = None if losses is None else losses.cpu()
            seconds, average = list(content["seconds"]), content["average"]
            rates = [RatePoint(**point) for point in content["rates"]]
            state = TrainingState(
                *place, history, kept, optimiser, scaler, halved, within, ended, losses, seconds, rates, average
            )
    except DamagedError as error:
        state_dicts.copy_state(model, before)
        log.warning("Ignoring the damaged checkpoint; fine-tuning starts from the beginning: %s", error)
        return TrainingState()
    return state

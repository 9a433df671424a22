"""Which engine is the fastest for so many images, its start included: measured once a machine, then remembered.

An engine that computes is tried before one that has to be started, and another only where it could save more than it
takes to find out. What was measured is kept for this user and this machine, so that the same question has the same
answer the next time: engines differ in the last digits, and a run is repeatable to the byte.
"""

import hashlib
import json
import logging
import math
import os
import platform
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import torch
from platformdirs import user_cache_path

from rootstock.backbones.backbones import Backbone
from rootstock.features import engines, gpu
from rootstock.features.engines import ENGINES, Engine, Name, Precision, Unavailable
from rootstock.system.errors import ParamsError
from rootstock.system.files import write
from rootstock.system.parallel import cores

log = logging.getLogger(__name__)
CACHE = "ROOTSTOCK_CACHE"  # environment variable: where what was measured is kept, in place of the user's cache folder
# How long an engine takes to start, and how many times as fast as the best before it it may be: both on the safe side
# of what was measured (docs/extraction.md). One is tried where that could save twice what it costs.
STARTS_IN_S = {"eager": 0.0, "openvino": 2.0, "onnxruntime": 2.0, "compile": 35.0}
MAY_BE_FASTER = {"eager": 1.0, "openvino": 3.0, "onnxruntime": 1.25, "compile": 1.5}
WORTH = 2.0
TIMED_S = 0.5


@dataclass(frozen=True)
class Measured:
    """What an engine did on this machine: seconds to start, images a second; or why it cannot."""

    start_s: float = 0.0
    rate: float = 0.0
    reason: str = ""

    def seconds(self, images: int) -> float:
        """Say how long so many images take, its start included."""
        return self.start_s + images / self.rate if self.rate else float("inf")


@dataclass(frozen=True)
class Choice:
    """The engine, already started if it had to be measured now, and why it is this one, in words."""

    name: Name
    engine: Engine | None
    why: str


def choose(
    backbone: Backbone, precision: Precision, batch_size: int | None, images: int, device: torch.device
) -> Choice:
    """Find the engine that has so many images computed first.

    Args:
        backbone: in evaluation mode.
        precision: of the computation; engines that cannot do it are passed over.
        batch_size: images a pass; None is the best for their size.
        images: how many there are to compute.
        device: the processor, or a GPU, where nothing is measured.

    Raises:
        ParamsError: none can compute it.
    """
    if device.type != "cpu":
        name: Name = "compile" if images >= gpu.COMPILE_FROM else "eager"
        return Choice(name, None, f"{name} for {images:,} images on a GPU; compile from {gpu.COMPILE_FROM:,} on")
    path = _cache() / f"{_question(backbone, precision, batch_size)}.json"
    known = _recall(path)
    started: dict[str, Engine] = {}

    def measure(name: Name) -> Measured:
        found, engine = _measure(name, backbone, precision, batch_size)
        if engine:
            started[name] = engine
        return found

    measured = decide(images, known, measure)
    if not measured.keys() <= known.keys():
        _remember(path, backbone, {**known, **measured})
    name = min(measured, key=lambda name: measured[name].seconds(images))
    if not measured[name].rate:
        raise ParamsError(f"params.yaml: extract.precision is {precision!r}, {_why(name, images, measured)}")
    return Choice(name, started.get(name), _why(name, images, measured))


def decide(images: int, known: dict[Name, Measured], measure: Callable[[Name], Measured]) -> dict[Name, Measured]:
    """Measure the engines that are worth it for so many images; those that are known are not measured again.

    What is known of others does not count: the answer is the same whatever else has been measured meanwhile.
    """
    measured: dict[Name, Measured] = {}
    for name in ENGINES:
        best = min((entry.seconds(images) for entry in measured.values()), default=float("inf"))
        could_save = best * (1 - 1 / MAY_BE_FASTER[name])
        if best == float("inf") or could_save > WORTH * STARTS_IN_S[name]:
            measured[name] = known.get(name) or measure(name)
    return measured


def _measure(
    name: Name, backbone: Backbone, precision: Precision, batch_size: int | None
) -> tuple[Measured, Engine | None]:
    """Start an engine, and time it on all cores: its first passes to warm up, then others for half a second."""
    begin = time.perf_counter()
    try:
        engine = engines.start(name, backbone, precision, batch_size)
        side = backbone.transform.size
        batch = np.random.default_rng(0).integers(0, 256, (engine.batch_size, 3, side, side), dtype=np.uint8)
        with ThreadPoolExecutor(cores(), initializer=engines.alone) as pool:
            list(pool.map(engine.forward, [batch] * cores()))
            start_s = time.perf_counter() - begin
            return Measured(start_s, _rate(pool, engine, batch)), engine
    except Unavailable as why:
        return Measured(reason=str(why)), None
    except Exception as error:  # an exporter or a runtime that does not know an operation raises what it likes
        return Measured(reason=f"{type(error).__name__}: {str(error).strip()[:200].partition(chr(10))[0]}"), None


def _rate(pool: ThreadPoolExecutor, engine: Engine, batch: np.ndarray) -> float:
    done, begin, seconds = 0, time.perf_counter(), 0.0
    while seconds < TIMED_S:
        done += sum(map(len, pool.map(engine.forward, [batch] * cores())))
        seconds = time.perf_counter() - begin
    return done / seconds


def _why(chosen: Name, images: int, measured: dict[Name, Measured]) -> str:
    """Put the choice into words."""
    parts = []
    for name in ENGINES:
        entry = measured.get(name)
        if entry is None:
            parts.append(f"{name} would not make up for its start")
        elif entry.rate:
            parts.append(f"{name} {entry.rate:.0f} images/s after {entry.start_s:.1f} s: {entry.seconds(images):.0f} s")
        else:
            parts.append(f"{name} cannot ({entry.reason})")
    return f"{chosen} is the fastest for {images:,} images here ({'; '.join(parts)})"


def _question(backbone: Backbone, precision: Precision, batch_size: int | None) -> str:
    """Digest what speed depends on: the network's shape (not its weights), the machine, the libraries."""
    shapes = [(name, tuple(value.shape)) for name, value in backbone.network.state_dict().items()]
    libraries = [_version(name) for name in ("torch", "onnxruntime", "openvino")]
    asked = (shapes, backbone.transform.size, backbone.width, precision, batch_size, _processor(), cores(), libraries)
    return hashlib.sha256(repr(asked).encode()).hexdigest()[:16]


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _processor() -> str:
    """Name the processor, and what torch makes of its instructions."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line for line in lines if line.startswith(("model name", "CPU part"))]
    return f"{platform.machine()} {names[:1]} {torch.backends.cpu.get_cpu_capability()}"


def _cache() -> Path:
    return (Path(os.environ[CACHE]) if CACHE in os.environ else user_cache_path("rootstock")) / "engines"


def _recall(path: Path) -> dict[Name, Measured]:
    """Read what was measured; nothing where the file is damaged, or another version's."""
    try:
        entries = json.loads(path.read_bytes())["engines"]
        return {name: _checked(Measured(**entries[name])) for name in ENGINES if name in entries}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):  # the last of what is nested without end
        return {}


def _checked(entry: Measured) -> Measured:
    """Hold an entry to what can have been measured.

    Raises:
        ValueError: it cannot.
    """
    if not (isinstance(entry.reason, str) and 0 <= entry.start_s < math.inf and 0 <= entry.rate < math.inf):
        raise ValueError(f"{entry} is no measurement")
    return entry


def _remember(path: Path, backbone: Backbone, measured: dict[Name, Measured]) -> None:
    kept = {
        "backbone": backbone.description.get("name"),
        "engines": {name: asdict(measured[name]) for name in measured},
    }
    try:
        write(path, json.dumps(kept, indent=2) + "\n")
    except OSError as error:  # a home that cannot be written to: it is measured again next time
        log.debug("engines: %s", error)

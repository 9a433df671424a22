"""Pretrained weights: from an address, a package that ships them, or a file; checked before their use."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from rootstock.backbones import fitting
from rootstock.backbones.fitting import State
from rootstock.backbones.networks import config_of_timm, options_of_timm, whole
from rootstock.config import params
from rootstock.config.architectures import NONE, TIMM, Architecture, architecture
from rootstock.system import downloads, files, packages, roots
from rootstock.system.causes import first_line
from rootstock.system.errors import WeightsError

MIRROR = "ROOTSTOCK_WEIGHTS_MIRROR"
TORCHVISIONS_LICENCE = "BSD-3-Clause (torchvision); trained on ImageNet-1k"
# What earlier runs of ours wrote, and how their parts are called: a model, a fine-tuned network, a backbone.
OWN_FILES = {"model.safetensors": "model.json", "weights.safetensors": "backbone.json"}
OWN_PARTS = re.compile(r"^(backbone\.(network\.)?|head\.)")
NAMED = 5  # files that an error gives


@dataclass(frozen=True)
class Found:
    """Weights, where they are from, and under which licence; `state` is None where they stay random."""

    state: State | None
    origin: str
    licence: str


def find(settings: params.Backbone, seed: int, image_size: int) -> Found:
    """Get the weights that the parameters name.

    Raises:
        WeightsError: they are not there, cannot be reached, or are damaged.
    """
    described = architecture(settings.name, settings.variant)
    match settings.weights:
        case "random":
            return Found(None, f"random, seed {seed}", "none")
        case "pretrained":
            return _pretrained(settings, described, image_size)
        case place if place.startswith(packages.PREFIX):
            return _from_package(place, "unknown: see the package")
        case place if "://" in place:
            raise WeightsError(
                f"backbone.weights is {place!r}, a URL; expected pretrained, random, {packages.PREFIX}<name>/<file> or "
                "the path of a file of this machine"
            )
        case path:
            return Found(
                _from_file(Path(path), settings.name), f"file {Path(path).name}", "unknown: a file of your own"
            )


def _pretrained(settings: params.Backbone, described: Architecture, image_size: int) -> Found:
    name = settings.name
    match described.pretrained:
        case "torchvision":
            return _from_torchvision(name)
        case "timm":
            return _from_timm(name, image_size)
        case place if place.startswith(packages.PREFIX):
            found = _from_package(place, described.licence, of_ours=True)
            return _in_order(found, name, image_size) if described.in_order else found
        case place if place != NONE:
            return Found(_download(name, place, described.sha256), place.rpartition("/")[2], described.licence)
    of = f"{name}, variant {settings.variant}" if settings.variant else name
    raise WeightsError(
        f"params.yaml: backbone.weights is 'pretrained', and nobody publishes weights of {of}; expected random, or the "
        "path of a .safetensors or .pth file"
    )


def _from_package(place: str, licence: str, *, of_ours: bool = False) -> Found:
    """Take the file that a package ships: package:<import name>/<file>, where the file may be a pattern.

    `of_ours` is what architectures.py names, not a parameter: its package need not be installed.
    """
    package, pattern = packages.parts(place)
    found = packages.find(package, pattern)
    if found is None and of_ours:
        found = packages.beside(package, pattern)
    if found is None:
        raise WeightsError(
            f"backbone.weights is {place!r}, and there is no package {package}; install the one that ships the weights"
        )
    if len(found) != 1:
        there = ", ".join([shipped.path.name for shipped in found[:NAMED]] + ["..."] * (len(found) > NAMED)) or "none"
        raise WeightsError(f"backbone.weights is {place!r}; expected one such file in the package, found {there}")
    [shipped] = found
    return Found(read(shipped.path), f"package {shipped.distribution}, {shipped.path.name}", licence)


def _in_order(found: Found, name: str, image_size: int) -> Found:
    """Rename entries to the network's names, one after the other: the file has other names, in its order."""
    assert found.state is not None
    with torch.device("meta"):  # its names are wanted, not its weights
        names = whole(name, image_size).state_dict().keys()
    return Found(dict(zip(names, found.state.values(), strict=True)), found.origin, found.licence)


def _from_torchvision(name: str) -> Found:
    """Take the weights that torchvision recommends; they are checked against the digest in their file's name."""
    from torchvision.models import get_model_weights

    chosen = get_model_weights(name).DEFAULT
    file = chosen.url.rpartition("/")[2]
    state = _download(name, chosen.url, downloads.digest_in(file))
    return Found(state, f"torchvision {chosen} {file}", chosen.meta.get("license", TORCHVISIONS_LICENCE))


def _download(name: str, address: str, sha256: str | None) -> State:
    """Read a file that is in torch's cache, or bring it there, from the mirror if there is one."""
    file = address.rpartition("/")[2]
    url, kept = _on_mirror(file) or address, _kept(file)
    try:
        return read(downloads.fetch(url, kept, sha256))
    except (downloads.DamagedError, WeightsError) as error:
        said = str(error) if isinstance(error, downloads.DamagedError) else "not a file of weights alone, or cut off"
        raise WeightsError(
            f"backbone.weights: {name}'s weights from {url} are damaged: {said}.\n"
            f"Remove {kept} if it is there, and try again."
        ) from error
    except (OSError, HTTPException, ImportError, ValueError) as error:  # the last two: of a driver of fsspec's
        raise WeightsError(
            f"backbone.weights: {name}'s weights cannot be had from {url}: {error}\n"
            f"Set {MIRROR} to a folder or address that holds {file}, or backbone.weights to a local file."
        ) from error


def _on_mirror(file: str) -> str | None:
    """Return a file's address on the mirror, if there is one."""
    mirror = os.environ.get(MIRROR)
    return f"{mirror.rstrip('/')}/{file}" if mirror else None


def _kept(file: str) -> Path:
    """Return a file's place in torch's own cache, which torchvision's users may have filled."""
    return Path(torch.hub.get_dir(), "checkpoints", file)


def _from_timm(name: str, image_size: int) -> Found:
    """Have timm fetch and convert its weights (from the Hugging Face hub, mostly); the mirror's file goes first.

    The hub's own settings hold: HF_ENDPOINT names another one, HF_HUB_OFFLINE keeps to what is in its cache.
    """
    import timm

    config, model = config_of_timm(name), name.removeprefix(TIMM)
    overlay: dict[str, str] = {}
    given: State = {}
    try:
        file = f"{model}.safetensors"
        if url := _on_mirror(file):
            overlay["file"] = str(downloads.fetch(url, _kept(file), None))
            given = read(_kept(file))
        network = timm.create_model(
            model, pretrained=True, pretrained_cfg_overlay=overlay or None, **options_of_timm(name, image_size)
        )
    except (OSError, HTTPException, RuntimeError, ImportError, ValueError) as error:
        raise WeightsError(
            f"backbone.weights: {name}'s weights cannot be had: {first_line(error) or type(error).__name__}.\n"
            f"Set {MIRROR} to a folder or address that holds {model}.safetensors, or backbone.weights to a local file."
        ) from error
    if wrong := fitting.wrong_kinds(network.state_dict(), given):  # timm has cast them
        raise WeightsError(f"backbone.weights: {_kept(file)}: {'; '.join(sorted(wrong))}")
    source = config.hf_hub_id or config.url or "a file"
    return Found(network.state_dict(), f"timm {timm.__version__} {source}", config.license or "unknown: see timm")


def _from_file(path: Path, name: str) -> State:
    """Read a file of a person's own, or what an earlier run of ours made: a folder, or the file in it."""
    try:
        is_folder = path.is_dir()
    except OSError as error:  # too long a name, a folder that is not for us
        raise WeightsError(f"backbone.weights: {path} cannot be read: {error.strerror}") from None
    if is_folder:
        there = [path / file for file in OWN_FILES if (path / file).exists()]
        if not there:
            raise WeightsError(f"backbone.weights: {path} holds none of {', '.join(OWN_FILES)}; expected a file's path")
        path = there[0]
    about = path.with_name(OWN_FILES.get(path.name, "")) if path.name in OWN_FILES else None
    if about and about.exists():
        described = files.read_json(about)
        with files.reading(about):
            made_of = described.get("backbone", described)["name"]
        if made_of != name:
            raise WeightsError(f"backbone.weights: {path} is a {made_of}, and backbone.name is {name}; set it to that")
    if roots.forbids(str(path), "file"):
        raise WeightsError(f"backbone.weights: {path} lies, links followed, out of the reach of this run; see docs")
    state = read(path)
    if all(OWN_PARTS.match(entry) for entry in state):
        state = {OWN_PARTS.sub("", entry): value for entry, value in state.items() if not entry.startswith("head.")}
    return state


def read(path: Path) -> State:
    """Read a state dict from a .safetensors or .pth file; nothing in it is ever executed.

    It may stand in a training checkpoint, and its names behind the prefix that DataParallel puts before them.

    Raises:
        WeightsError: there is no such file, it is neither, or it holds something else.
    """
    if not path.is_file():  # nor a pipe, which would keep its reader waiting
        raise WeightsError(f"backbone.weights: {path} is not there; expected pretrained, random, or a file's path")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the readers raise whatever the parser met: KeyError, UnicodeDecodeError, ...
        raise WeightsError(
            f"{path}: not a file of weights alone, or damaged ({_said(error)}). "
            "Save the state dict: torch.save(model.state_dict(), path)."
        ) from None
    for key in ("state_dict", "model_state_dict", "best", "model"):  # best: fine-tuning's checkpoint of our own
        if isinstance(loaded, Mapping) and isinstance(inner := loaded.get(key), Mapping):
            loaded = inner
    if not isinstance(loaded, Mapping) or not all(isinstance(value, Tensor) for value in loaded.values()):
        found = f" of {', '.join(map(str, list(loaded)[:5]))}" if isinstance(loaded, Mapping) else ""
        raise WeightsError(
            f"{path}: holds a {type(loaded).__name__}{found}; expected a state dict, alone or under the key "
            "state_dict, model_state_dict or model"
        )
    return {str(name).removeprefix("module."): value for name, value in loaded.items()}


def _said(error: Exception) -> str:
    """Return what a reader said, without torch's advice to read the file in a way that runs code."""
    return first_line(error).partition(". In PyTorch")[0] or type(error).__name__

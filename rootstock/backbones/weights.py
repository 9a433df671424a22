"""Find pretrained weights (a URL, an installed package or a file), and check them before use."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from rootstock.backbones import state_dicts
from rootstock.backbones.networks import build_with_classifier, import_timm, timm_config, timm_options
from rootstock.backbones.state_dicts import State
from rootstock.config import params
from rootstock.config.architectures import NONE, TIMM, Architecture, architecture
from rootstock.system import downloads, files, packages, roots
from rootstock.system.causes import first_line
from rootstock.system.errors import WeightsError

MIRROR = "ROOTSTOCK_WEIGHTS_MIRROR"
TORCHVISION_LICENCE = "BSD-3-Clause (torchvision); trained on ImageNet-1k"
# Files of earlier Rootstock runs (model, fine-tuned network, backbone), and the prefixes of their entries.
RUN_FILES = {"model.safetensors": "model.json", "weights.safetensors": "backbone.json"}
RUN_PREFIXES = re.compile(r"^(backbone\.(network\.)?|head\.)")
MAX_LISTED = 5  # files that an error lists


@dataclass(frozen=True)
class FoundWeights:
    """A state dict with its origin and licence; `state` is None for random weights."""

    state: State | None
    origin: str
    licence: str


def find(settings: params.Backbone, seed: int, image_size: int) -> FoundWeights:
    """Return the weights that the parameters name.

    Raises:
        WeightsError: they are missing, unreachable or damaged.
    """
    described = architecture(settings.name, settings.variant)
    match settings.weights:
        case "random":
            return FoundWeights(None, f"random, seed {seed}", "none")
        case "pretrained":
            return _pretrained(settings, described, image_size)
        case place if place.startswith(packages.PREFIX):
            return _from_package(place, "unknown: see the package")
        case place if "://" in place:
            raise WeightsError(
                f"backbone.weights is {place!r}, a URL; expected pretrained, random, {packages.PREFIX}<name>/<file> or "
                "the path of a local file"
            )
        case path:
            return FoundWeights(
                _from_file(Path(path), settings.name), f"file {Path(path).name}", "unknown: a file of your own"
            )


def _pretrained(settings: params.Backbone, described: Architecture, image_size: int) -> FoundWeights:
    name = settings.name
    match described.pretrained:
        case "torchvision":
            return _from_torchvision(name)
        case "timm":
            return _from_timm(name, image_size)
        case place if place.startswith(packages.PREFIX):
            found = _from_package(place, described.licence, built_in=True)
            return _renamed_in_order(found, name, image_size) if described.in_order else found
        case place if place != NONE:
            return FoundWeights(_download(name, place, described.sha256), place.rpartition("/")[2], described.licence)
    of = f"{name}, variant {settings.variant}" if settings.variant else name
    raise WeightsError(
        f"params.yaml: backbone.weights is 'pretrained', but there are no published weights for {of}; expected "
        "random, or the path of a .safetensors or .pth file"
    )


def _from_package(place: str, licence: str, *, built_in: bool = False) -> FoundWeights:
    """Read a weights file from a package: package:<import name>/<file>, where the file may be a pattern.

    `built_in`: the package is named by architectures.py, not by a parameter, and need not be installed.
    """
    package, pattern = packages.parts(place)
    found = packages.find(package, pattern)
    if found is None and built_in:
        found = packages.beside(package, pattern)
    if found is None:
        raise WeightsError(
            f"backbone.weights is {place!r}, but the package {package} is not installed; "
            "install the one that contains the weights"
        )
    if len(found) != 1:
        there = (
            ", ".join([shipped.path.name for shipped in found[:MAX_LISTED]] + ["..."] * (len(found) > MAX_LISTED))
            or "none"
        )
        raise WeightsError(
            f"backbone.weights is {place!r}; expected exactly one matching file in the package, found {there}"
        )
    [shipped] = found
    return FoundWeights(read(shipped.path), f"package {shipped.distribution}, {shipped.path.name}", licence)


def _renamed_in_order(found: FoundWeights, name: str, image_size: int) -> FoundWeights:
    """Rename entries to the network's names by position: the file uses other names in the same order."""
    assert found.state is not None
    with torch.device("meta"):  # only the names are needed
        names = build_with_classifier(name, image_size).state_dict().keys()
    return FoundWeights(dict(zip(names, found.state.values(), strict=True)), found.origin, found.licence)


def _from_torchvision(name: str) -> FoundWeights:
    """Download torchvision's recommended weights, and check them against the digest in the file name."""
    from torchvision.models import get_model_weights

    chosen = get_model_weights(name).DEFAULT
    file = chosen.url.rpartition("/")[2]
    state = _download(name, chosen.url, downloads.digest_in(file))
    return FoundWeights(state, f"torchvision {chosen} {file}", chosen.meta.get("license", TORCHVISION_LICENCE))


def _download(name: str, address: str, sha256: str | None) -> State:
    """Read a file from torch's cache, downloading it first if needed, from the mirror if one is set."""
    file = address.rpartition("/")[2]
    url, kept = _on_mirror(file) or address, _cache_path(file)
    try:
        return read(downloads.fetch(url, kept, sha256))
    except (downloads.DamagedError, WeightsError) as error:
        why = str(error) if isinstance(error, downloads.DamagedError) else "not a weights-only file, or truncated"
        raise WeightsError(
            f"backbone.weights: {name}'s weights from {url} are damaged: {why}.\n"
            f"Remove {kept} if it exists, and try again."
        ) from error
    except (OSError, HTTPException, ImportError, ValueError) as error:  # the last two come from fsspec drivers
        raise WeightsError(
            f"backbone.weights: {name}'s weights cannot be loaded from {url}: {error}\n"
            f"Set {MIRROR} to a folder or URL that contains {file}, or backbone.weights to a local file."
        ) from error


def _on_mirror(file: str) -> str | None:
    """Return a file's URL on the mirror, or None if no mirror is set."""
    mirror = os.environ.get(MIRROR)
    return f"{mirror.rstrip('/')}/{file}" if mirror else None


def _cache_path(file: str) -> Path:
    """Return a file's path in torch's own cache, which torchvision shares."""
    return Path(torch.hub.get_dir(), "checkpoints", file)


def _from_timm(name: str, image_size: int) -> FoundWeights:
    """Let timm download and convert its weights, mostly from the Hugging Face hub; the mirror takes precedence.

    The hub's own settings apply: HF_ENDPOINT selects another hub, HF_HUB_OFFLINE restricts it to its cache.
    """
    timm = import_timm()
    config, model = timm_config(name), name.removeprefix(TIMM)
    overlay: dict[str, str] = {}
    given: State = {}
    try:
        file = f"{model}.safetensors"
        if url := _on_mirror(file):
            overlay["file"] = str(downloads.fetch(url, _cache_path(file), None))
            given = read(_cache_path(file))
        network = timm.create_model(
            model, pretrained=True, pretrained_cfg_overlay=overlay or None, **timm_options(name, image_size)
        )
    except (OSError, HTTPException, RuntimeError, ImportError, ValueError) as error:
        raise WeightsError(
            f"backbone.weights: {name}'s weights cannot be loaded: {first_line(error) or type(error).__name__}.\n"
            f"Set {MIRROR} to a folder or URL that contains {model}.safetensors, or backbone.weights to a local file."
        ) from error
    if wrong := state_dicts.dtype_mismatches(network.state_dict(), given):  # timm has cast them
        raise WeightsError(f"backbone.weights: {_cache_path(file)}: {'; '.join(sorted(wrong))}")
    source = config.hf_hub_id or config.url or "a file"
    return FoundWeights(
        network.state_dict(), f"timm {timm.__version__} {source}", config.license or "unknown: see timm"
    )


def _from_file(path: Path, name: str) -> State:
    """Read a user's own weights file, or the folder or file of an earlier run."""
    try:
        is_folder = path.is_dir()
    except OSError as error:  # name too long, no permission
        raise WeightsError(f"backbone.weights: {path} cannot be read: {error.strerror}") from None
    if is_folder:
        there = [path / file for file in RUN_FILES if (path / file).exists()]
        if not there:
            raise WeightsError(
                f"backbone.weights: {path} contains none of {', '.join(RUN_FILES)}; expected the path of a file"
            )
        path = there[0]
    about = path.with_name(RUN_FILES.get(path.name, "")) if path.name in RUN_FILES else None
    if about and about.exists():
        described = files.read_json(about)
        with files.reading(about):
            made_of = described.get("backbone", described)["name"]
        if made_of != name:
            raise WeightsError(
                f"backbone.weights: {path} holds weights of {made_of}, but backbone.name is {name}; set it to {made_of}"
            )
    if roots.forbids(str(path), "file"):
        raise WeightsError(f"backbone.weights: {path} resolves to a place outside what this run may read; see docs")
    state = read(path)
    if all(RUN_PREFIXES.match(entry) for entry in state):
        state = {RUN_PREFIXES.sub("", entry): value for entry, value in state.items() if not entry.startswith("head.")}
    return state


def read(path: Path) -> State:
    """Read a state dict from a .safetensors or .pth file, without ever executing code from it.

    Training checkpoints are unwrapped, and DataParallel's `module.` prefix is removed.

    Raises:
        WeightsError: the file does not exist, is neither format, or does not contain a state dict.
    """
    if not path.is_file():  # nor a pipe, which would block its reader
        raise WeightsError(
            f"backbone.weights: {path} does not exist; expected pretrained, random, or the path of a file"
        )
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the readers raise whatever their parsers do: KeyError, UnicodeDecodeError, ...
        raise WeightsError(
            f"{path}: not a weights-only file, or damaged ({_reader_message(error)}). "
            "Save the state dict: torch.save(model.state_dict(), path)."
        ) from None
    for key in ("state_dict", "model_state_dict", "best", "model"):  # best: Rootstock's fine-tuning checkpoint
        if isinstance(loaded, Mapping) and isinstance(inner := loaded.get(key), Mapping):
            loaded = inner
    if not isinstance(loaded, Mapping) or not all(isinstance(value, Tensor) for value in loaded.values()):
        found = f" of {', '.join(map(str, list(loaded)[:5]))}" if isinstance(loaded, Mapping) else ""
        raise WeightsError(
            f"{path}: contains a {type(loaded).__name__}{found}; expected a state dict, bare or under the key "
            "state_dict, model_state_dict or model"
        )
    return {str(name).removeprefix("module."): value for name, value in loaded.items()}


def _reader_message(error: Exception) -> str:
    """Return a reader's message, without torch's advice to load the file in a way that runs code."""
    return first_line(error).partition(". In PyTorch")[0] or type(error).__name__

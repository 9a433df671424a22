"""Which folder holds which features: a key that stands for everything that decides the numbers.

A file of features depends on image bytes and backbone alone: neither a label nor a split is in it, so that relabelling
or splitting anew rewrites none.
"""

import hashlib
import json
from pathlib import Path
from typing import Any, Literal

from rootstock.config import params
from rootstock.config.architectures import PENULTIMATE
from rootstock.system.errors import SourceError
from rootstock.system.files import read_json, reading, write

FORMAT_VERSION = 2
AUTO: Literal["auto"] = "auto"
Engine = Literal["eager", "openvino"]
FORMER_ENGINES = ("onnxruntime", "compile")  # of earlier versions: what they computed is read, and not added to


def cache_key_fields(
    description: dict[str, Any], settings: params.Extract, engine: str, view: int = 0
) -> dict[str, Any]:
    """Spell out everything that decides the numbers of a backbone's features.

    Args:
        description: the contents of backbone.json.
        settings: the section `extract` of params.yaml.
        engine: that computes them.
        view: 0 is the image itself, others are augmented.
    """
    depth = description.get("depths", {}).get(settings.layer)
    layer = depth["layer"] if depth else settings.layer  # a depth and the module that it means are the same
    return {
        "backbone": description["name"],
        "digest": description["digest"],
        "transform": description["transform"],
        "layer": layer,
        **({"pooling": settings.pooling} if layer != PENULTIMATE else {}),  # the penultimate layer has its own
        "dtype": settings.dtype,
        "engine": engine,
        "precision": settings.precision,
        **({"view": view, "augment": settings.view_augment} if view else {}),  # it sees all pixels in any case
        **({"decode": settings.decode} if not view else {}),
        "format": FORMAT_VERSION,
    }


def key_of(meaning: dict[str, Any]) -> str:
    """Name the folder of features: a short digest of their meaning."""
    return hashlib.sha256(json.dumps(meaning, sort_keys=True).encode()).hexdigest()[:12]


def find(description: dict[str, Any], settings: params.Extract, features_dir: Path) -> list[Path]:
    """Name the folders that hold a backbone's features: of the images themselves, then of each augmented view.

    Raises:
        SourceError: `extract.engine` is auto, and nothing has been extracted yet.
    """
    engine = settings.engine if settings.engine != AUTO else engine_of(description, settings, features_dir)
    if engine is None:
        raise SourceError(f"{features_dir} has no features of this backbone: run extract first, or `dvc pull` it")
    meanings = (cache_key_fields(description, settings, engine, view) for view in range(settings.views + 1))
    return [features_dir / key_of(meaning) for meaning in meanings]


def engine_of(description: dict[str, Any], settings: params.Extract, features_dir: Path) -> str | None:
    """Return the engine that `auto` has been so far for these features; None where it has to be chosen."""
    path = _note(description, settings, features_dir)
    if not path.exists():
        return None
    noted = read_json(path)
    with reading(path):
        return str(noted["engine"])


def note_engine(description: dict[str, Any], settings: params.Extract, features_dir: Path, engine: str) -> None:
    """Record which engine `auto` is for these features: it stays, so that a cache is of one engine.

    The note is `<digest of the meaning without its engine>.json`, with the key of the folder that it stands for.
    """
    if engine_of(description, settings, features_dir) != engine:
        key = key_of(cache_key_fields(description, settings, engine))
        content = json.dumps({"engine": engine, "key": key}, indent=2) + "\n"
        write(_note(description, settings, features_dir), content)


def _note(description: dict[str, Any], settings: params.Extract, features_dir: Path) -> Path:
    return features_dir / f"{key_of(cache_key_fields(description, settings, AUTO))}.json"

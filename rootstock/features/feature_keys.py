"""Feature keys: the folder of a set of features is named after everything that determines their values.

Features depend on image bytes, backbone and settings alone. Labels and splits are not part of them, so relabelling or
a new split recomputes nothing.
"""

import hashlib
import json
from pathlib import Path
from typing import Any, Literal

from rootstock.config import params
from rootstock.config.architectures import PENULTIMATE, Transform
from rootstock.features.feature_spec import FeatureSpec
from rootstock.system.errors import SourceError
from rootstock.system.files import read_json, reading, write

FORMAT_VERSION = 2
AUTO: Literal["auto"] = "auto"
Engine = Literal["eager", "openvino"]
FORMER_ENGINES = ("onnxruntime", "compile")  # of earlier versions: their features are read, but no new ones are added


def cache_key_fields(
    description: dict[str, Any], settings: params.Extract, engine: str, view: int = 0
) -> dict[str, Any]:
    """Return everything that determines the values of a backbone's features.

    Args:
        description: the contents of backbone.json.
        settings: the section `extract` of params.yaml.
        engine: computes them.
        view: 0 is the image itself, others are augmented.
    """
    fields = fields_of(description, spec_of(description, settings, engine))
    if view:
        del fields["decode"]  # views are always decoded at full size
        fields |= {"view": view, "augment": settings.view_augment}
    return fields


def fields_of(description: dict[str, Any], spec: FeatureSpec) -> dict[str, Any]:
    """Return everything that determines the values of the features of images as they are, without augmentation."""
    depth = description.get("depths", {}).get(spec.layer)
    layer = depth["layer"] if depth else spec.layer  # a level and the module it stands for have one key
    return {
        "backbone": description["name"],
        "digest": description["digest"],
        "transform": description["transform"],
        "layer": layer,
        **({"pooling": spec.pooling} if layer != PENULTIMATE else {}),  # the penultimate layer has its own pooling
        "dtype": spec.dtype,
        "engine": spec.engine,
        "precision": spec.precision,
        "decode": spec.decode,
        **({"mirror": True} if spec.mirror else {}),
        "format": FORMAT_VERSION,
    }


def spec_of(description: dict[str, Any], settings: params.Extract, engine: str) -> FeatureSpec:
    """Return the spec of a backbone's features."""
    return FeatureSpec.of(Transform.from_dict(description["transform"]), settings, engine)


def key_of(fields: dict[str, Any]) -> str:
    """Return the feature key, which is the folder's name: a short digest of the fields."""
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:12]


def find(description: dict[str, Any], settings: params.Extract, features_dir: Path) -> list[Path]:
    """Return the folders of a backbone's features: the images themselves, then each augmented view.

    Raises:
        SourceError: `extract.engine` is auto, and nothing has been extracted yet.
    """
    engine = engine_in_use(description, settings, features_dir)
    views = range(settings.views + 1)
    return [features_dir / key_of(cache_key_fields(description, settings, engine, view)) for view in views]


def engine_in_use(description: dict[str, Any], settings: params.Extract, features_dir: Path) -> str:
    """Return the engine of a backbone's features: the one that the settings name, or that `auto` stands for.

    Raises:
        SourceError: `extract.engine` is auto, and nothing has been extracted yet.
    """
    engine = settings.engine if settings.engine != AUTO else engine_of(description, settings, features_dir)
    if engine is None:
        raise SourceError(f"{features_dir} has no features of this backbone: run extract first, or `dvc pull` it")
    return engine


def engine_of(description: dict[str, Any], settings: params.Extract, features_dir: Path) -> str | None:
    """Return the engine recorded for `auto` with these features, or None if there is none yet."""
    path = _note_path(description, settings, features_dir)
    if not path.exists():
        return None
    note = read_json(path)
    with reading(path):
        return str(note["engine"])


def note_engine(description: dict[str, Any], settings: params.Extract, features_dir: Path, engine: str) -> None:
    """Record which engine `auto` stands for with these features, so that a cache never mixes engines.

    The file is `<key with engine auto>.json`; it holds the engine and the key of the folder.
    """
    if engine_of(description, settings, features_dir) != engine:
        key = key_of(cache_key_fields(description, settings, engine))
        content = json.dumps({"engine": engine, "key": key}, indent=2) + "\n"
        write(_note_path(description, settings, features_dir), content)


def _note_path(description: dict[str, Any], settings: params.Extract, features_dir: Path) -> Path:
    return features_dir / f"{key_of(cache_key_fields(description, settings, AUTO))}.json"

"""dvc.lock: the parameters that each stage ran with, and what it wrote.

This module imports no DVC, which takes a second.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rootstock.system import yaml_file
from rootstock.system.errors import ParamsError
from tasks.bridge.workspace import DATASET

LOCK = Path("dvc.lock")
Stages = Mapping[str, Any]


def stages_in(text: str | bytes, where: str = str(LOCK)) -> Stages:
    """Return the stages in the text of a dvc.lock; `where` names it in errors.

    Raises:
        ParamsError: it is not one.
    """
    parsed = yaml_file.parse(text.encode() if isinstance(text, str) else text, where)
    if not isinstance(parsed, dict) or not isinstance(parsed.get("stages"), dict):
        raise ParamsError(f"{where}: expected stages")
    return dict(parsed["stages"])


def params_of(stages: Stages) -> dict[str, Any]:
    """Return the parameters that the stages ran with by dotted key, e.g. {"head.max_iterations": 300}."""
    found: dict[str, Any] = {}
    for stage in stages.values():
        for values in stage.get("params", {}).values():
            for key, value in values.items():
                found |= flat(value, key)
    return found


def flat(value: Any, key: str = "") -> dict[str, Any]:  # noqa: ANN401
    """Return nested values by dotted key; a list is one value."""
    if not isinstance(value, Mapping):
        return {key: value}
    prefix = f"{key}." if key else ""
    return {name: one for inner in value for name, one in flat(value[inner], f"{prefix}{inner}").items()}


def outputs_of(stages: Stages) -> dict[str, str]:
    """Return the digest of each output that has one by its path; that of a folder ends in .dir."""
    outs = (out for stage in stages.values() for out in stage.get("outs", []))
    return {out["path"]: str(out["md5"]) for out in outs if "md5" in out}  # none where the remote has the versions


def data_version(stages: Stages) -> str:
    """Return the digest of the dataset, whose first digits `python -m flows.runs` shows; "" if there is none."""
    return outputs_of(stages).get(str(DATASET), "").removesuffix(".dir")

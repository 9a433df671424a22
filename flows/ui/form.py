"""The forms of the flows in the Prefect UI, and the values that a flow is given.

The form starts from the workspace's params.yaml as it was when the flow was loaded. Given values are merged over
params.yaml as it is when the run starts (tasks/bridge/run_params.py), so a flow has to tell the values it was given
from those the form only shows: the latter have types of their own.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

from rootstock.config import params, params_file
from rootstock.config.section import Section, without_warnings
from rootstock.system.errors import ParamsError
from tasks.bridge.workspace import PARAMS


class Shown:
    """Mark a value that the form shows but nobody gave to the run."""


class _ShownSection(dict[str, Any], Shown):
    pass


class _ShownNumber(int, Shown):
    pass


class _ShownText(str, Shown):
    __slots__ = ()


@dataclass(frozen=True)
class Form:
    """Describe a flow parameter by a section, for the form and for the server, which refuses invalid values.

    In a run, values are checked only once they are merged with the rest of the section, and errors are in our own
    words, which contain no secrets.
    """

    section: type[Section]

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:  # noqa: ANN401
        """Use the schema of the section, but accept anything."""
        shown = handler.generate_schema(self.section)
        return core_schema.no_info_wrap_validator_function(lambda value, _: value, shown)


Values = Mapping[str, Any]
Ingest = Annotated[Values, Form(params.Ingest)]
Backbone = Annotated[Values, Form(params.Backbone)]
Extract = Annotated[Values, Form(params.Extract)]
Head = Annotated[Values, Form(params.Head)]
Finetune = Annotated[Values, Form(params.Finetune)]
Evaluate = Annotated[Values, Form(params.Evaluate)]
Compare = Annotated[Values, Form(params.Compare)]
Retrain = Annotated[Values, Form(params.Retrain)]
Track = params.Track
Everything = Annotated[Values, Form(params.Params)]


def _read() -> dict[str, Any]:
    """Read params.yaml; if it is invalid, the form is empty. Errors and warnings are left to the run."""
    try:
        with without_warnings():
            return params_file.load(PARAMS).model_dump(mode="json")
    except ParamsError:
        return {name: {} for name in params.Params.model_fields} | {"seed": 0, "track": "none"}


def _shown(value: Any) -> Shown:  # noqa: ANN401
    match value:
        case int():
            return _ShownNumber(value)
        case str():
            return _ShownText(value)
    return _ShownSection(value)


SHOWN: dict[str, Any] = {name: _shown(value) for name, value in _read().items()}


def given(**sections: Any) -> dict[str, Any]:  # noqa: ANN401
    """Return only the values that were given to the run, as plain values."""
    return {
        name: value.model_dump(mode="json", exclude_unset=True) if isinstance(value, BaseModel) else value
        for name, value in sections.items()
        if not isinstance(value, Shown)
    }

"""What the form in the Prefect UI starts from: the workspace's params.yaml, as it was when the flow was loaded."""

from rootstock import params, params_file
from rootstock.errors import ParamsError
from tasks.workspace import PARAMS


def _defaults() -> params.Params:
    """Read params.yaml; the built-in values where it is at fault: the run itself will say how."""
    try:
        return params_file.load(PARAMS)
    except ParamsError:
        return params.Params()


DEFAULTS = _defaults()

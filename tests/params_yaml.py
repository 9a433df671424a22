"""The params.yaml that is shipped, and the error for one that is refused."""

from pathlib import Path

import pytest

from rootstock.config.params_file import load
from rootstock.system.errors import ParamsError

SHIPPED = Path(__file__).parents[1] / "params.yaml"


def error_of(path: Path, text: str) -> str:
    """The error for a file that is refused."""
    path.write_text(text)
    with pytest.raises(ParamsError) as error:
        load(path)
    return str(error.value)

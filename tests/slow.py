"""Values of a parametrised test that only `make test-slow` tries."""

from typing import Any

import pytest


def slow(*values: object) -> list[Any]:
    """Mark values of a test with a single parameter."""
    return [pytest.param(value, marks=pytest.mark.slow) for value in values]

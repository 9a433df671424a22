"""A server that tests share: they ask, and leave it as it was."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.served_model import Site, serving


@pytest.fixture(scope="session")
def site(head_model: Path) -> Iterator[Site]:
    """A model, served with the usual limits."""
    with serving(head_model) as running:
        yield running

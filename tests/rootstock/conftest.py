"""The small dataset that tests of extraction share, its features, and the backbone that made them."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from rootstock.backbones import backbones
from rootstock.features import engines
from rootstock.images import loader
from tests.small_dataset import Small, small_backbone, small_dataset, small_features


@pytest.fixture(autouse=True)
def random_numbers() -> None:
    """Let each test draw the same images and weights every time, whichever ran before it."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def base(tmp_path_factory) -> Path:
    """Where what tests share is made, once a session (tests/small_dataset.py)."""
    return tmp_path_factory.getbasetemp()


@pytest.fixture(scope="session")
def small(base) -> Small:
    """A dataset of two domains in several shards; nothing writes to it."""
    return small_dataset(base)


@pytest.fixture(scope="session")
def folder(base) -> Path:
    """The features of the dataset; nothing writes to them."""
    return small_features(base)


@pytest.fixture
def backbone(base) -> backbones.Backbone:
    """The backbone of those features; a test may do with it what it likes."""
    return backbones.load(small_backbone(base))


@dataclass(frozen=True)
class Work:
    """What a test has had done so far: an entry per image decoded for a network, and per image an engine computed."""

    decoded: list[None] = field(default_factory=list)
    computed: list[None] = field(default_factory=list)

    @property
    def images(self) -> tuple[int, int]:
        """How many were decoded, and how many computed."""
        return len(self.decoded), len(self.computed)


@pytest.fixture
def work(monkeypatch) -> Work:
    """Count the images that are decoded, and those that go through a network to be scored."""
    done, view, start = Work(), loader.view, engines.start

    def counted_view(*given: Any, **named: Any) -> Any:
        done.decoded.append(None)
        return view(*given, **named)

    def counted_start(*given: Any, **named: Any) -> Any:
        engine = start(*given, **named)

        def forward(images: Any) -> Any:
            done.computed.extend([None] * len(images))
            return engine.forward(images)

        return replace(engine, forward=forward)

    monkeypatch.setattr(loader, "view", counted_view)
    monkeypatch.setattr(engines, "start", counted_start)
    return done

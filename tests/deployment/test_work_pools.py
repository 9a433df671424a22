"""The templates of the work pools: Prefect accepts them, and whoever starts a run decides nothing about its process."""

import json
import re

import pytest
from prefect.client.schemas.actions import WorkPoolCreate

from flows.ui.deploy import TEMPLATE, taken_by
from tests.deployment_examples import (
    POOLS,
    name_of,
)


@pytest.mark.parametrize("pool", POOLS, ids=name_of)
def test_prefect_accepts_the_template_of_a_pool(pool):
    WorkPoolCreate(name=pool.stem, type=pool.parent.name, base_job_template=json.loads(pool.read_text()))


@pytest.mark.parametrize("pool", POOLS, ids=name_of)
def test_whoever_starts_a_run_cannot_set_any_variable_of_a_pool(pool):
    template = json.loads(pool.read_text())
    assert taken_by(template) == []
    assert template["variables"] == TEMPLATE["variables"]
    assert not {"command", "env", "args"} & set(re.findall(r'"(\w+)":', pool.read_text()))

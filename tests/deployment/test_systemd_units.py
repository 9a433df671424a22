"""The systemd units keep a server and workers running, as a user of their own with secrets from a file."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.deployment_examples import EXAMPLES, name_of, named, run, tool

UNITS = sorted((EXAMPLES / "systemd").iterdir())


def settings_of(unit: Path) -> Iterator[tuple[str, str, str]]:
    """Return section, key and value of each line of a unit; keys may come more than once."""
    section = ""
    for line in unit.read_text().splitlines():
        if line.startswith("["):
            section = line.strip("[]")
        elif line and not line.startswith("#"):
            key, _, value = line.partition("=")
            yield section, key, value


@pytest.mark.parametrize("unit", UNITS, ids=name_of)
def test_systemd_accepts_each_unit(unit, tmp_path):
    program = tool("systemd-analyze")
    copy = tmp_path / unit.name
    copy.write_text(re.sub(r"^ExecStart=\S+", "ExecStart=/bin/true", unit.read_text(), flags=re.MULTILINE))
    assert run(program, "verify", str(copy)) == ""


@pytest.mark.parametrize("unit", UNITS, ids=name_of)
def test_each_unit_keeps_prefect_running_as_a_user_with_secrets_from_a_file(unit):
    settings = {(section, key): value for section, key, value in settings_of(unit)}
    assert {section for section, _ in settings} == {"Unit", "Service", "Install"}
    assert settings["Service", "User"] in ("prefect", "rootstock")
    assert settings["Service", "Restart"] == "always"
    assert settings["Service", "EnvironmentFile"] in named(
        r"^# (/etc/rootstock/\w+\.env)", *(EXAMPLES / "env").iterdir()
    )
    folder = settings["Service", "WorkingDirectory"]
    assert settings["Service", "ExecStart"].startswith(f"{folder}/.venv/bin/prefect ")
    assert settings["Install", "WantedBy"] == "multi-user.target"


@pytest.mark.parametrize("unit", [unit for unit in UNITS if "server" not in unit.name], ids=name_of)
def test_a_worker_executes_one_run_at_a_time_in_its_workspace(unit):
    lines = [f"{key}={value}" for _, key, value in settings_of(unit)]
    assert "Environment=ROOTSTOCK_WORKSPACE=/srv/rootstock" in lines
    assert any(line.startswith("ExecStart=") and line.endswith("--limit 1") for line in lines)


def test_a_gpu_worker_sees_the_gpu_of_its_instance_and_is_named_after_it():
    text = (EXAMPLES / "systemd" / "rootstock-gpu@.service").read_text()
    assert "Environment=CUDA_VISIBLE_DEVICES=%i\n" in text
    assert re.search(r"--name \S*%i ", text)

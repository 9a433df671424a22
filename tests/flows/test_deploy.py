"""Deploying: prefect.yaml is read before anything is sent to a server."""

from pathlib import Path

import pytest

from flows.ui import deploy
from rootstock.system.errors import RootstockError


def test_an_invalid_prefect_yaml_is_refused_in_a_short_message_before_a_server_is_asked(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for content, said in (
        ("a: " + "9" * 5000, "prefect.yaml: not valid YAML: a value cannot be read"),
        ("[]", "prefect.yaml: expected a list of entries under the key deployments"),
        ("deployments: [x]", "prefect.yaml: expected a list of entries under the key deployments"),
        ("deployments: [{name: x, work_pool: {}}]", r"prefect.yaml: deployments\[0\].entrypoint is missing"),
    ):
        Path("prefect.yaml").write_text(content)
        with pytest.raises(RootstockError, match=said):
            deploy.deploy()
    Path("prefect.yaml").unlink()
    Path("prefect.yaml").mkdir()
    with pytest.raises(RootstockError, match=r"prefect\.yaml: cannot be read: Is a directory"):
        deploy.refresh_forms()

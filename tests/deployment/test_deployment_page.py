"""docs/deployment.md and its examples name each other, and only settings, keys and pools that exist."""

import re
import subprocess

import prefect.settings
import pytest

from rootstock.config.params import Finetune
from tests.deployment_examples import FILES, PAGE, POOLS, ROOT, SAFE, name_of, named, tool

SERVER = SAFE.load((ROOT / "prefect.yaml").read_text())
# Settings that Prefect itself does not know; as in prefect_kubernetes/settings.py of 0.8.0.
OF_PREFECT_KUBERNETES = {
    "PREFECT_INTEGRATIONS_KUBERNETES_OBSERVER_NAMESPACES",
    *(
        f"PREFECT_INTEGRATIONS_KUBERNETES_WORKER_{secret}_SECRET_{part}"
        for secret in ("API_KEY", "API_AUTH_STRING")
        for part in ("NAME", "KEY")
    ),
}


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_the_page_names_every_example(path):
    assert path.name == ".gitignore" or f"deployment/{name_of(path)}" in PAGE.read_text()


def test_every_file_that_the_page_names_exists():
    linked = named(r"\]\((deployment/[^)]*)\)", PAGE)
    typed = named(r"\bdocs/(deployment/[\w./@-]*\w)", PAGE)
    assert [path for path in linked | typed if not (ROOT / "docs" / path).exists() and not path.endswith("/.env")] == []


def test_the_commands_on_the_page_parse():
    blocks = re.findall(r"```sh\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(blocks) > 10
    for block in blocks:
        said = subprocess.run([tool("bash"), "-n"], input=block, capture_output=True, text=True, check=False)
        assert not said.stderr, f"{block}\n{said.stderr}"


def test_every_prefect_setting_exists():
    names = named(r"\b(PREFECT_[A-Z0-9_]*[A-Z0-9])\b(?!\*)", PAGE, *FILES) - OF_PREFECT_KUBERNETES
    assert "PREFECT_API_URL" in names
    assert [name for name in sorted(names) if not hasattr(prefect.settings, name)] == []


def test_every_rootstock_variable_is_read_by_the_code():
    code = "".join(
        path.read_text() for folder in ("flows", "tasks", "rootstock") for path in (ROOT / folder).rglob("*.py")
    )
    names = named(r"\b(ROOTSTOCK_[A-Z_]+)\b", PAGE, *FILES)
    assert "ROOTSTOCK_WORKSPACE" in names
    assert [name for name in names if f'"{name}"' not in code] == []


def test_every_key_of_the_parameters_exists():
    keys = named(r"`finetune\.(\w+)", PAGE) | set(
        SAFE.load(re.findall(r"```yaml\n(.*?)```", PAGE.read_text(), re.DOTALL)[0])["finetune"]
    )
    assert keys >= {"where", "if_no_worker"}
    assert keys <= set(Finetune.model_fields)


def test_pools_and_deployments_agree_with_prefect_yaml():
    pools = {deployment["work_pool"]["name"] for deployment in SERVER["deployments"]}
    named_pools = named(r"--pool(?:, | )(\w+)", PAGE, *FILES) | named(
        r"work-pool (?:create|update|pause|resume) (\w+)", PAGE
    )
    assert named_pools == pools == {path.stem.removeprefix("pool-") for path in POOLS}
    flows = [one["entrypoint"].partition(":")[2].replace("_", "-") for one in SERVER["deployments"]]
    deployments = {f"{flow}/{one['name']}" for flow, one in zip(flows, SERVER["deployments"], strict=True)}
    assert named(rf"\b((?:{'|'.join(flows)})/\w+)\b(?!\.)", PAGE) == deployments


def test_workers_send_heartbeats_often_enough_for_the_automation():
    within = SAFE.load((ROOT / "automations.yaml").read_text())["automations"][0]["trigger"]["within"]
    pattern = r'PREFECT_FLOWS_HEARTBEAT_FREQUENCY(?:=|: |\n\s+value: ")(\d+)'
    workers = [path for path in FILES if re.search(r"worker(?:, | )start", path.read_text())]
    assert len(workers) == 4
    for path in workers:
        [seconds] = named(pattern, path)
        assert 3 * int(seconds) <= within, path


def test_no_example_contains_a_secret():
    secrets = named(r"(?:PASSWORD|AUTH_STRING|KEY|KEY_ID)(?:=|: )(\S+)", *FILES)
    assert [secret for secret in secrets if "CHANGE-ME" not in secret and not secret.startswith("${")] == []

"""Create or update work pools, the deployments of prefect.yaml and automations on a Prefect server.

    PREFECT_API_URL=http://server:4200/api python -m flows.ui.deploy

Our work pools let whoever starts a run set neither command nor environment. An existing pool with a template of its own
is left alone; if it accepts more, a message says so (docs/deployment.md). With ROOTSTOCK_WEBHOOK set, notifications are
posted to that address.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from prefect.blocks.webhook import Webhook
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import DeploymentUpdate, WorkPoolCreate, WorkPoolUpdate
from prefect.events.schemas.automations import AutomationCore
from prefect.exceptions import ObjectNotFound
from prefect.flows import Flow, load_flow_from_entrypoint
from prefect.settings import PREFECT_API_URL
from prefect.utilities.callables import parameter_schema
from prefect.utilities.templating import find_placeholders
from prefect.workers.process import ProcessWorker
from pydantic import SecretStr

from rootstock.system import yaml_file
from rootstock.system.errors import RootstockError
from tasks.bridge import causes, workspace

DEPLOYMENTS = Path("prefect.yaml")
AUTOMATIONS = Path("automations.yaml")
WEBHOOK = "ROOTSTOCK_WEBHOOK"  # environment variable: where notifications are posted to, as {"text": ...}
BLOCK = "rootstock-notifications"
NOWHERE = "https://set-me.invalid/"  # placeholder until the block gets an address
# How a worker starts a run. A run's job_variables fill placeholders and are merged into an existing `env`: Prefect's
# own template has `command` (a shell command) and `env` among them. This one has no placeholders.
TEMPLATE = {
    "job_configuration": {"stream_output": True},
    "variables": {"type": "object", "properties": {}, "additionalProperties": False},
}


def deploy() -> None:
    """Update the server's pools, deployments and automations.

    Raises:
        RootstockError: prefect.yaml cannot be deployed.
    """
    deployments = _entries(DEPLOYMENTS, "deployments", "entrypoint", "work_pool")
    automations = _entries(AUTOMATIONS, "automations", "actions")
    with get_client(sync_client=True) as client:
        for pool in sorted({deployment["work_pool"]["name"] for deployment in deployments}):
            _put_pool(client, pool)
    # This command implements the many options of prefect.yaml.
    command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all"]
    env = {name: value for name, value in os.environ.items() if name != workspace.ROOT}  # the worker's, not ours
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    if done.returncode:
        raise RootstockError(f"{DEPLOYMENTS} cannot be deployed:\n{done.stdout}{done.stderr}")
    with get_client(sync_client=True) as client:
        enabled = _put_webhook()
        for automation in automations:
            _put_automation(client, automation, enabled=enabled)


def _entries(path: Path, key: str, *needed: str) -> list[dict[str, Any]]:
    """Read a list of entries from a file.

    Raises:
        RootstockError: there is no list, or an entry lacks its name or another key.
    """
    content = yaml_file.read(path)
    entries = content.get(key) if isinstance(content, dict) else None
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise RootstockError(f"{path}: expected a list of entries under the key {key}")
    for number, entry in enumerate(entries):
        if missing := [name for name in ("name", *needed) if name not in entry]:
            raise RootstockError(f"{path}: {key}[{number}].{missing[0]} is missing")
    return entries


def _put_pool(client: SyncPrefectClient, name: str) -> None:
    """Create a pool that takes nothing from whoever starts a run, or change one with Prefect's own template to that."""
    try:
        pool = client.read_work_pool(name)
    except ObjectNotFound:
        client.create_work_pool(WorkPoolCreate(name=name, type=ProcessWorker.type, base_job_template=TEMPLATE))
        return
    template = pool.base_job_template
    if pool.type == ProcessWorker.type and (not template or _is_prefects_own(template)):
        client.update_work_pool(name, WorkPoolUpdate(base_job_template=TEMPLATE))
    elif taken := taken_by(template):
        print(
            f"The work pool {name}, of type {pool.type}, lets whoever starts a run set: {', '.join(taken)}. Anybody "
            "who can start a run can run commands on its workers; docs/deployment.md has safe templates."
        )


def _is_prefects_own(template: dict[str, Any]) -> bool:
    """Whether a pool's template is Prefect's own, of any version, without changes."""
    configuration, variables = template["job_configuration"], template["variables"].get("properties", {})
    untouched = not any(variable.get("default") for name, variable in variables.items() if name != "stream_output")
    return untouched and all(value == f"{{{{ {name} }}}}" for name, value in configuration.items())


def taken_by(template: dict[str, Any]) -> list[str]:
    """Return what a pool's template lets whoever starts a run set."""
    configuration = template.get("job_configuration", {})
    merged = {"env"} if isinstance(configuration.get("env"), dict) else set()
    return sorted(merged | {placeholder.name for placeholder in find_placeholders(configuration)})


def _put_webhook() -> bool | None:
    """Set the address of notifications: ROOTSTOCK_WEBHOOK, which is never shown, or a placeholder.

    Returns:
        Whether to switch notifications on or off; None: leave them.
    """
    address = os.environ.get(WEBHOOK)
    try:
        block: Any = Webhook.load(BLOCK)
        before = block.url.get_secret_value()
    except ValueError:  # does not exist yet
        before = None
    if address or before is None:
        Webhook(url=SecretStr(address or NOWHERE)).save(BLOCK, overwrite=True)
    if address:
        return True if before in (None, NOWHERE) else None
    return False if before is None else None


def _put_automation(client: SyncPrefectClient, described: dict[str, Any], *, enabled: bool | None) -> None:
    """Create or update an automation; if a person switched it on or off, it stays so."""
    actions = [_resolved(client, action) for action in described["actions"]]
    automation = AutomationCore.model_validate({**described, "actions": actions})
    there = client.read_automations_by_name(automation.name)
    if there:
        automation.enabled = there[0].enabled
    if enabled is not None and any("block_document_id" in action for action in actions):
        automation.enabled = enabled
    if there:
        client.update_automation(there[0].id, automation)
    else:
        client.create_automation(automation)


def _resolved(client: SyncPrefectClient, action: dict[str, Any]) -> dict[str, Any]:
    """Replace names by the server's ids."""
    ids = dict(action)
    if name := ids.pop("deployment", None):
        try:
            ids["deployment_id"] = str(client.read_deployment_by_name(name).id)
        except ObjectNotFound:
            raise RootstockError(f"{AUTOMATIONS}: {name} is not a deployment of {DEPLOYMENTS}") from None
    if name := ids.pop("block", None):
        ids["block_document_id"] = str(client.read_block_document_by_name(name, "webhook").id)
    return ids


def refresh_forms() -> None:
    """Update the defaults of the forms from params.yaml; nothing else of the deployments changes."""
    deployments = _entries(DEPLOYMENTS, "deployments", "entrypoint")  # without a server, connecting starts one
    with get_client(sync_client=True) as client:
        for deployment in deployments:
            flow: Flow[..., Any] = load_flow_from_entrypoint(deployment["entrypoint"])
            there = client.read_deployment_by_name(f"{flow.name}/{deployment['name']}")
            schema = parameter_schema(flow).model_dump_for_openapi()
            client.update_deployment(there.id, DeploymentUpdate(parameter_openapi_schema=schema))


def main() -> None:
    """Deploy; an error is one sentence and exit status 1."""
    parser = argparse.ArgumentParser(
        description="Create or update work pools, deployments and automations on a Prefect server."
    )
    parser.add_argument("--forms", action="store_true", help="only update the defaults of the forms from params.yaml")
    only_forms = parser.parse_args().forms
    with causes.entry_point("deploy", needs_server=True):
        if only_forms:
            refresh_forms()
        else:
            deploy()
            print(f"Deployed {DEPLOYMENTS} and {AUTOMATIONS} to {PREFECT_API_URL.value()}")


if __name__ == "__main__":
    main()

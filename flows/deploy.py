"""Put what can be started onto a Prefect server: work pools, the deployments of prefect.yaml, automations.

    PREFECT_API_URL=http://server:4200/api python -m flows.deploy

Done again, it brings up to date what is there; a work pool that is there, of whatever type, is left alone.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import DeploymentUpdate, WorkPoolCreate
from prefect.events.schemas.automations import AutomationCore
from prefect.exceptions import ObjectNotFound
from prefect.flows import Flow, load_flow_from_entrypoint
from prefect.settings import PREFECT_API_URL
from prefect.utilities.callables import parameter_schema
from prefect.workers.process import ProcessWorker
from ruamel.yaml import YAML

from rootstock.errors import RootstockError
from tasks import workspace

DEPLOYMENTS = Path("prefect.yaml")
AUTOMATIONS = Path("automations.yaml")


def deploy() -> None:
    """Bring the server's pools, deployments and automations up to date.

    Raises:
        RootstockError: prefect.yaml cannot be deployed.
    """
    deployments = YAML(typ="safe").load(DEPLOYMENTS)["deployments"]
    automations = YAML(typ="safe").load(AUTOMATIONS)["automations"]
    with get_client(sync_client=True) as client:
        for pool in sorted({deployment["work_pool"]["name"] for deployment in deployments}):
            _add_pool(client, pool)
    # Its options in prefect.yaml are many, and this command is what knows them.
    command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all"]
    env = {name: value for name, value in os.environ.items() if name != workspace.ROOT}  # the worker's, not this one's
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    if done.returncode:
        raise RootstockError(f"{DEPLOYMENTS} cannot be deployed:\n{done.stdout}{done.stderr}")
    with get_client(sync_client=True) as client:
        for automation in automations:
            _put_automation(client, AutomationCore.model_validate(automation))


def _add_pool(client: SyncPrefectClient, name: str) -> None:
    try:
        client.read_work_pool(name)
    except ObjectNotFound:
        template = ProcessWorker.get_default_base_job_template()
        client.create_work_pool(WorkPoolCreate(name=name, type=ProcessWorker.type, base_job_template=template))


def _put_automation(client: SyncPrefectClient, automation: AutomationCore) -> None:
    there = client.read_automations_by_name(automation.name)
    if there:
        automation.enabled = there[0].enabled  # a person may have switched it off
        client.update_automation(there[0].id, automation)
    else:
        client.create_automation(automation)


def refresh_forms() -> None:
    """Make the forms start from params.yaml as it is now; nothing else of the deployments is touched."""
    with get_client(sync_client=True) as client:
        for deployment in YAML(typ="safe").load(DEPLOYMENTS)["deployments"]:
            flow: Flow[..., Any] = load_flow_from_entrypoint(deployment["entrypoint"])
            there = client.read_deployment_by_name(f"{flow.name}/{deployment['name']}")
            schema = parameter_schema(flow).model_dump_for_openapi()
            client.update_deployment(there.id, DeploymentUpdate(parameter_openapi_schema=schema))


def main() -> None:
    """Deploy; an error is one message, and exit status 1."""
    parser = argparse.ArgumentParser(description="Put pools, deployments and automations onto a Prefect server.")
    parser.add_argument("--forms", action="store_true", help="only make the forms start from params.yaml as it is now")
    only_forms = parser.parse_args().forms
    if not PREFECT_API_URL.value():
        sys.exit("deploy: PREFECT_API_URL is not set; it names the server, e.g. http://127.0.0.1:4200/api")
    try:
        if only_forms:
            refresh_forms()
        else:
            deploy()
            print(f"{PREFECT_API_URL.value()} has all that {DEPLOYMENTS} and {AUTOMATIONS} name")
    except RootstockError as error:
        sys.exit(f"deploy: {error}")


if __name__ == "__main__":
    main()

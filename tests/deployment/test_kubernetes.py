"""The Kubernetes manifests and the Job of a run."""

from typing import Any

import pytest

from tests.deployment_examples import EXAMPLES, PAGE, SAFE, configuration, named

MANIFESTS = list(SAFE.load_all((EXAMPLES / "kubernetes" / "worker.yaml").read_text()))


def job() -> dict[str, Any]:
    """Return the Job that the pool makes of a run."""
    made = configuration(EXAMPLES / "kubernetes" / "pool-gpu.json")["job_manifest"]
    # What prefect-kubernetes puts where a template has nothing.
    made["metadata"] |= {"generateName": "wise-goat-", "labels": {}, "annotations": {}}
    made["spec"]["template"]["spec"]["containers"][0] |= {"args": ["prefect", "flow-run", "execute"], "env": []}
    for stray in ("parallelism", "completions"):  # prefect-kubernetes asks for them there, and Kubernetes ignores them
        del made["spec"]["template"]["spec"][stray]
    return made


@pytest.mark.parametrize("manifest", [*MANIFESTS, job()], ids=lambda manifest: manifest["kind"])
def test_every_manifest_fits_the_schema_of_its_kind(manifest):
    kubernetes_validate = pytest.importorskip("kubernetes_validate")
    kubernetes_validate.validate(manifest, kubernetes_validate.latest_version(), strict=True)


def test_a_run_in_kubernetes_has_one_gpu_and_is_tried_again_by_prefect():
    spec = job()["spec"]
    [container] = spec["template"]["spec"]["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert (spec["backoffLimit"], spec["template"]["spec"]["restartPolicy"]) == (0, "Never")


def test_the_parts_in_the_cluster_refer_to_each_other():
    account, role, binding, deployment = MANIFESTS
    assert [subject["name"] for subject in binding["subjects"]] == [account["metadata"]["name"]]
    assert binding["roleRef"]["name"] == role["metadata"]["name"]
    pod = deployment["spec"]["template"]
    assert pod["spec"]["serviceAccountName"] == account["metadata"]["name"]
    assert pod["metadata"]["labels"] == deployment["spec"]["selector"]["matchLabels"]
    environment = {entry["name"]: entry for entry in pod["spec"]["containers"][0]["env"]}
    secret = environment["PREFECT_API_AUTH_STRING"]["valueFrom"]["secretKeyRef"]
    prefix = "PREFECT_INTEGRATIONS_KUBERNETES_WORKER_API_AUTH_STRING_SECRET"
    assert {"name": environment[f"{prefix}_NAME"]["value"], "key": environment[f"{prefix}_KEY"]["value"]} == secret
    pool = configuration(EXAMPLES / "kubernetes" / "pool-gpu.json")
    [container] = pool["job_manifest"]["spec"]["template"]["spec"]["containers"]
    [source] = container["envFrom"]
    assert environment["PREFECT_INTEGRATIONS_KUBERNETES_OBSERVER_NAMESPACES"]["value"] == pool["namespace"]
    assert named(r"create namespace (\S+)", PAGE) == {pool["namespace"]}
    assert named(r"create secret generic (\S+)", PAGE) == {secret["name"], source["secretRef"]["name"]}

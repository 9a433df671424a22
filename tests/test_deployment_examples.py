"""The files under docs/deployment/ and the page that explains them, checked without any engine.

What needs a tool is skipped where the tool is missing; the rest reads the files as they are.
"""

import json
import os
import re
import shutil
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import prefect.settings
import pytest
from prefect.client.schemas.actions import WorkPoolCreate
from ruamel.yaml import YAML

from flows.ui.deploy import TEMPLATE, taken_by
from rootstock.config.params import Finetune
from tests.serving import free_port, process, until

SAFE = YAML(typ="safe")
ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "docs" / "deployment"
PAGE = ROOT / "docs" / "deployment.md"
FILES = sorted(path for path in EXAMPLES.rglob("*") if path.is_file())
UNITS = sorted((EXAMPLES / "systemd").iterdir())
POOLS = sorted(EXAMPLES.rglob("pool-*.json"))
MANIFESTS = list(SAFE.load_all((EXAMPLES / "kubernetes" / "worker.yaml").read_text()))
COMPOSE = (EXAMPLES / "docker" / "compose.yaml").read_text()
DOCKERFILE = EXAMPLES / "docker" / "Dockerfile"
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


def name_of(path: Path) -> str:
    return str(path.relative_to(EXAMPLES))


def tool(name: str) -> str:
    """Find a program beside this Python, on the path or where Debian keeps servers; without it, skip."""
    places = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"], "/usr/sbin"])
    found = shutil.which(name, path=places)
    if not found:
        pytest.skip(f"{name} is not installed")
    return found


def run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    return said


def settings_of(unit: Path) -> Iterator[tuple[str, str, str]]:
    """Return section, key and value of each line of a unit; keys may come more than once."""
    section = ""
    for line in unit.read_text().splitlines():
        if line.startswith("["):
            section = line.strip("[]")
        elif line and not line.startswith("#"):
            key, _, value = line.partition("=")
            yield section, key, value


def named(pattern: str, *paths: Path) -> set[str]:
    """Collect what a pattern's group finds in some files."""
    return {found for path in paths for found in re.findall(pattern, path.read_text(), re.MULTILINE)}


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_the_page_names_every_example(path):
    assert path.name == ".gitignore" or f"deployment/{name_of(path)}" in PAGE.read_text()


def test_every_file_that_the_page_names_is_there():
    linked = named(r"\]\((deployment/[^)]*)\)", PAGE)
    typed = named(r"\bdocs/(deployment/[\w./@-]*\w)", PAGE)
    assert [path for path in linked | typed if not (ROOT / "docs" / path).exists() and not path.endswith("/.env")] == []


def test_the_commands_on_the_page_parse():
    blocks = re.findall(r"```sh\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(blocks) > 10
    for block in blocks:
        said = subprocess.run([tool("bash"), "-n"], input=block, capture_output=True, text=True, check=False)
        assert not said.stderr, f"{block}\n{said.stderr}"


def test_every_setting_of_prefect_is_one():
    names = named(r"\b(PREFECT_[A-Z0-9_]*[A-Z0-9])\b(?!\*)", PAGE, *FILES) - OF_PREFECT_KUBERNETES
    assert "PREFECT_API_URL" in names
    assert [name for name in sorted(names) if not hasattr(prefect.settings, name)] == []


def test_every_variable_of_rootstock_is_read_by_the_code():
    code = "".join(
        path.read_text() for folder in ("flows", "tasks", "rootstock") for path in (ROOT / folder).rglob("*.py")
    )
    names = named(r"\b(ROOTSTOCK_[A-Z_]+)\b", PAGE, *FILES)
    assert "ROOTSTOCK_WORKSPACE" in names
    assert [name for name in names if f'"{name}"' not in code] == []


def test_every_key_of_params_is_one():
    keys = named(r"`finetune\.(\w+)", PAGE) | set(
        SAFE.load(re.findall(r"```yaml\n(.*?)```", PAGE.read_text(), re.DOTALL)[0])["finetune"]
    )
    assert keys >= {"where", "if_no_worker"}
    assert keys <= set(Finetune.model_fields)


def test_pools_and_deployments_are_those_of_prefect_yaml():
    pools = {deployment["work_pool"]["name"] for deployment in SERVER["deployments"]}
    named_pools = named(r"--pool(?:, | )(\w+)", PAGE, *FILES) | named(
        r"work-pool (?:create|update|pause|resume) (\w+)", PAGE
    )
    assert named_pools == pools == {path.stem.removeprefix("pool-") for path in POOLS}
    flows = [one["entrypoint"].partition(":")[2].replace("_", "-") for one in SERVER["deployments"]]
    deployments = {f"{flow}/{one['name']}" for flow, one in zip(flows, SERVER["deployments"], strict=True)}
    assert named(rf"\b((?:{'|'.join(flows)})/\w+)\b(?!\.)", PAGE) == deployments


def test_workers_send_heartbeats_before_the_automation_takes_them_for_dead():
    within = SAFE.load((ROOT / "automations.yaml").read_text())["automations"][0]["trigger"]["within"]
    pattern = r'PREFECT_FLOWS_HEARTBEAT_FREQUENCY(?:=|: |\n\s+value: ")(\d+)'
    workers = [path for path in FILES if re.search(r"worker(?:, | )start", path.read_text())]
    assert len(workers) == 4
    for path in workers:
        [seconds] = named(pattern, path)
        assert 3 * int(seconds) <= within, path


def test_no_secret_stands_in_an_example():
    secrets = named(r"(?:PASSWORD|AUTH_STRING|KEY|KEY_ID)(?:=|: )(\S+)", *FILES)
    assert [secret for secret in secrets if "CHANGE-ME" not in secret and not secret.startswith("${")] == []


# systemd


@pytest.mark.parametrize("unit", UNITS, ids=name_of)
def test_systemd_accepts_each_unit(unit, tmp_path):
    program = tool("systemd-analyze")
    copy = tmp_path / unit.name
    copy.write_text(re.sub(r"^ExecStart=\S+", "ExecStart=/bin/true", unit.read_text(), flags=re.MULTILINE))
    assert run(program, "verify", str(copy)) == ""


@pytest.mark.parametrize("unit", UNITS, ids=name_of)
def test_each_unit_starts_prefect_for_good_as_a_user_with_secrets_from_a_file(unit):
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
def test_a_worker_takes_one_run_at_a_time_in_its_workspace(unit):
    lines = [f"{key}={value}" for _, key, value in settings_of(unit)]
    assert "Environment=ROOTSTOCK_WORKSPACE=/srv/rootstock" in lines
    assert any(line.startswith("ExecStart=") and line.endswith("--limit 1") for line in lines)


def test_a_gpu_worker_sees_the_gpu_of_its_instance_and_is_named_after_it():
    text = (EXAMPLES / "systemd" / "rootstock-gpu@.service").read_text()
    assert "Environment=CUDA_VISIBLE_DEVICES=%i\n" in text
    assert re.search(r"--name \S*%i ", text)


# nginx


def test_nginx_accepts_all_files(tmp_path):
    nginx, openssl = tool("nginx"), tool("openssl")
    run(nginx, "-t", "-c", str(nginx_files(tmp_path, openssl)), "-e", f"{tmp_path}/log")


def nginx_files(folder: Path, openssl: str) -> Path:
    """Write one configuration of the files of both hosts, with a certificate."""
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    made = ["-newkey", "rsa:2048", "-nodes", "-subj", "/CN=prefect.example.org", "-keyout", str(key)]
    run(openssl, "req", "-x509", *made, "-out", str(certificate))
    servers = "".join(path.read_text() for path in sorted((EXAMPLES / "nginx").iterdir()))
    servers = re.sub(r"(ssl_certificate_key\s+)\S+;", rf"\1{key};", servers)
    servers = re.sub(r"(ssl_certificate\s+)\S+;", rf"\1{certificate};", servers)
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    folders = "".join(f"{kind}_temp_path {folder}/{kind};\n" for kind in kinds)
    whole = folder / "nginx.conf"
    main = f"daemon off;\npid {folder}/pid;\nerror_log {folder}/log;\nevents {{}}\n"
    whole.write_text(f"{main}http {{\naccess_log off;\n{folders}{servers}\n}}\n")
    return whole


def test_a_server_asks_for_a_secret_and_answers_its_own_pages_alone():
    env = (EXAMPLES / "env" / "server.env").read_text()
    proxy = (EXAMPLES / "nginx" / "prefect.conf").read_text()
    [own] = named(r"^PREFECT_UI_URL=(\S+)", EXAMPLES / "env" / "server.env")
    for text in (env, COMPOSE, (EXAMPLES / "docker" / "example.env").read_text()):
        assert "PREFECT_SERVER_API_AUTH_STRING" in text
        assert "PREFECT_SERVER_CORS_ALLOWED_ORIGINS" in text
    assert f"PREFECT_SERVER_CORS_ALLOWED_ORIGINS={own}\n" in env
    assert f"    {own}   0;\n" in proxy
    assert "--host 127.0.0.1 " in (EXAMPLES / "systemd" / "rootstock-server.service").read_text()
    assert SAFE.load(COMPOSE)["services"]["server"]["ports"] == ["127.0.0.1:4200:4200"]
    for worker in (EXAMPLES / "env" / "worker.env", EXAMPLES / "kubernetes" / "worker.yaml"):
        assert "PREFECT_API_AUTH_STRING" in worker.read_text()


@pytest.fixture
def nginx(tmp_path) -> Iterator[int]:
    """Run nginx with the files of both hosts, with a stub behind it, on ports of its own; gives that of https."""
    program, openssl = tool("nginx"), tool("openssl")
    port = free_port()
    whole = nginx_files(tmp_path, openssl)
    here = whole.read_text().replace("listen 443", f"listen 127.0.0.1:{port}")
    here = here.replace("listen 80", f"listen 127.0.0.1:{port + 1}")
    whole.write_text(re.sub(r"proxy_pass \S+;", "return 200 answered;", here))
    with process([program, "-c", str(whole), "-e", f"{tmp_path}/log"], dict(os.environ)):
        until(lambda: answered_by_nginx(port, "prefect.example.org", "prefect.example.org"), "nginx", 20)
        yield port


def answered_by_nginx(port: int, called: str, host: str, **headers: str) -> str:
    """Ask over TLS by one name, and in the request by another; gives the status, or nothing where it hangs up."""
    context = ssl._create_unverified_context()
    asked = "".join(f"{name}: {value}\r\n" for name, value in {"Host": host, **headers}.items())
    try:
        with (
            socket.create_connection(("127.0.0.1", port), 5) as plain,
            context.wrap_socket(plain, server_hostname=called) as connection,
        ):
            connection.sendall(f"GET /api/flows HTTP/1.1\r\n{asked}Connection: close\r\n\r\n".encode())
            return connection.recv(4096).decode().split(" ")[1] if called else ""
    except (OSError, IndexError):
        return ""


def test_nginx_answers_who_calls_it_by_its_name_and_no_page_of_another_site(nginx):
    own = "prefect.example.org"
    assert answered_by_nginx(nginx, own, own) == "200"
    assert answered_by_nginx(nginx, own, own, Origin=f"https://{own}") == "200"
    for origin in ("https://evil.example", "null", f"http://{own}", f"https://{own}.evil.example", f"https://{own}:1"):
        assert answered_by_nginx(nginx, own, own, Origin=origin) == "403", origin
    for called, host in (
        ("evil.example", "evil.example"),
        (own, "evil.example"),
        (own, "127.0.0.1"),
        (own, "localhost"),
    ):
        assert answered_by_nginx(nginx, called, host) == "", host


def test_nginx_leads_to_the_server_and_to_the_reports():
    proxy, reports = ((EXAMPLES / "nginx" / f"{name}.conf").read_text() for name in ("prefect", "reports"))
    [listens] = named(r"--port (\d+)", EXAMPLES / "systemd" / "rootstock-server.service")
    assert f"proxy_pass http://127.0.0.1:{listens};" in proxy
    assert "proxy_set_header Upgrade $http_upgrade;" in proxy
    [address] = named(r"^ROOTSTOCK_REPORTS_URL=https://(\S+)", EXAMPLES / "env" / "worker.env")
    host, _, place = address.partition("/")
    assert f"server_name {host};" in reports
    assert f"location /{place}/ {{" in reports
    assert "alias /srv/rootstock/.rootstock/reports/;" in reports


# Docker


def stages_of_dockerfile() -> dict[str, str]:
    parts = re.split(r"^FROM \S+ AS (\w+)\n", DOCKERFILE.read_text(), flags=re.MULTILINE)[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))


def copied(stage: str) -> list[str]:
    lines = re.findall(r"^COPY (.*) \S+$", stages_of_dockerfile()[stage], re.MULTILINE)
    return [word.rstrip("/") for line in lines for word in line.split() if not word.startswith("--")]


def test_hadolint_accepts_the_dockerfile():
    assert run(tool("hadolint"), str(DOCKERFILE)) == ""


def test_what_the_dockerfile_copies_is_there_and_not_ignored():
    let_through = [
        line[1:]
        for line in (EXAMPLES / "docker" / "Dockerfile.dockerignore").read_text().split()
        if line.startswith("!")
    ]
    for source in copied("prefect") + copied("rootstock"):
        assert (ROOT / source).exists(), source
        assert any(fnmatch(source, pattern) for pattern in let_through), f"{source} is ignored"


def test_the_image_has_the_code_of_every_stage():
    """A worker copies it into the workspace of each run, and compares that of fine_tune with the pipeline's."""
    stages = SAFE.load((ROOT / "dvc.yaml").read_text())["stages"].values()
    code = {dep for stage in stages for dep in stage["deps"] if not dep.startswith("data/")} | {
        "dvc.yaml",
        "prefect.yaml",
    }
    there = copied("rootstock")
    assert {path for path in code if path not in there and path.partition("/")[0] not in there} == set()


def test_runs_in_the_image_happen_where_its_code_is():
    stage = stages_of_dockerfile()["rootstock"]
    [workspace] = re.findall(r"ROOTSTOCK_WORKSPACE=(\S+)", stage)
    assert re.findall(r"^WORKDIR (.*)", stage, re.MULTILINE) == [workspace]
    volumes = configuration(EXAMPLES / "docker" / "pool-cpu.json")["volumes"]
    assert f"/srv/rootstock:{workspace}" in volumes


def test_the_compose_file_fits_the_compose_specification():
    compose_spec = pytest.importorskip("compose_spec")
    compose_spec.PyCompose.from_yaml(COMPOSE).validate()


def test_the_parts_of_the_compose_file_refer_to_each_other():
    compose = SAFE.load(COMPOSE)
    services = compose["services"]
    for name, service in services.items():
        assert set(service.get("depends_on", {})) <= set(services), name
        volumes = {volume.partition(":")[0] for volume in service.get("volumes", [])}
        assert {volume for volume in volumes if not volume.startswith("/")} <= set(compose["volumes"]), name
    variables = set(re.findall(r"\$\{(\w+)", COMPOSE))
    assert variables == named(r"^#?([A-Z][A-Z_]+)=", EXAMPLES / "docker" / "example.env")
    cpu = configuration(EXAMPLES / "docker" / "pool-cpu.json")
    assert cpu["networks"] == [compose["networks"]["default"]["name"]]


# Work pools


def configuration(pool: Path) -> dict[str, Any]:
    return json.loads(pool.read_text())["job_configuration"]


@pytest.mark.parametrize("pool", POOLS, ids=name_of)
def test_prefect_accepts_the_template_of_a_pool(pool):
    WorkPoolCreate(name=pool.stem, type=pool.parent.name, base_job_template=json.loads(pool.read_text()))


@pytest.mark.parametrize("pool", POOLS, ids=name_of)
def test_a_pool_takes_nothing_from_whoever_starts_a_run(pool):
    template = json.loads(pool.read_text())
    assert taken_by(template) == []
    assert template["variables"] == TEMPLATE["variables"]
    assert not {"command", "env", "args"} & set(re.findall(r'"(\w+)":', pool.read_text()))


def test_a_run_in_docker_gets_the_gpus_of_its_pool_as_a_device_request():
    made = configuration(EXAMPLES / "docker" / "pool-gpu.json")
    requested = {"driver": "nvidia", "device_ids": ["0"], "capabilities": [["gpu"]]}
    assert made["container_create_kwargs"]["device_requests"] == [requested]


# Kubernetes


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

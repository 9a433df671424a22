"""The image, the Compose file and the Docker work pools."""

import json
import re
from fnmatch import fnmatch

import pytest

from rootstock.model.serving.settings import parser, settings_of
from rootstock.system.errors import ParamsError
from tests.deployment_examples import COMPOSE, EXAMPLES, ROOT, SAFE, configuration, name_of, named, run, tool

DOCKERFILE = EXAMPLES / "docker" / "Dockerfile"
SERVER = EXAMPLES / "docker" / "serve.Dockerfile"


def stages_of_dockerfile() -> dict[str, str]:
    parts = re.split(r"^FROM \S+ AS (\w+)\n", DOCKERFILE.read_text(), flags=re.MULTILINE)[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))


def copied(stage: str) -> list[str]:
    return copied_by(stages_of_dockerfile()[stage])


def copied_by(text: str) -> list[str]:
    lines = re.findall(r"^COPY (.*) \S+$", text, re.MULTILINE)
    return [word.rstrip("/") for line in lines for word in line.split() if not word.startswith("--")]


@pytest.mark.parametrize("dockerfile", [DOCKERFILE, SERVER], ids=name_of)
def test_hadolint_accepts_each_dockerfile(dockerfile):
    assert run(tool("hadolint"), str(dockerfile)) == ""


@pytest.mark.parametrize(
    ("dockerfile", "sources"),
    [(DOCKERFILE, copied("prefect") + copied("rootstock")), (SERVER, copied_by(SERVER.read_text()))],
    ids=["Dockerfile", "serve.Dockerfile"],
)
def test_files_that_a_dockerfile_copies_exist_and_are_not_ignored(dockerfile, sources):
    ignored = dockerfile.with_name(f"{dockerfile.name}.dockerignore").read_text()
    let_through = [line[1:] for line in ignored.split() if line.startswith("!")]
    assert sources
    for source in sources:
        assert (ROOT / source).exists(), source
        assert any(fnmatch(source, pattern) for pattern in let_through), f"{source} is ignored"


def test_the_server_of_a_model_runs_as_no_root_and_tells_docker_how_it_is():
    text = SERVER.read_text()
    assert re.findall(r"^USER (.*)", text, re.MULTILINE) == ["1000"]
    [entry], [arguments] = (re.findall(rf"^{what} (.*)", text, re.MULTILINE) for what in ("ENTRYPOINT", "CMD"))
    assert json.loads(entry)[1:] == ["-m", "rootstock.model.serving"]
    asked = parser("").parse_args(json.loads(arguments)[1:])
    assert f"http://127.0.0.1:{asked.port}/healthz" in text and f"EXPOSE {asked.port}\n" in text
    with pytest.raises(ParamsError, match="set ROOTSTOCK_TOKEN"):
        settings_of(asked)


def test_the_image_contains_the_code_of_every_stage():
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


def test_a_run_in_docker_gets_the_gpus_of_its_pool_as_a_device_request():
    made = configuration(EXAMPLES / "docker" / "pool-gpu.json")
    requested = {"driver": "nvidia", "device_ids": ["0"], "capabilities": [["gpu"]]}
    assert made["container_create_kwargs"]["device_requests"] == [requested]

"""A real small workspace: the project's code, a git and DVC repository, 45 drawn photos of three classes."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from ruamel.yaml import YAML

ROOT = Path(__file__).parents[1]
CLASSES = {"lemon": (220, 200, 40), "moss": (60, 130, 60), "plum": (110, 40, 110)}
CODE = ("flows", "tasks", "rootstock", ".dvc/config", ".dvc/.gitignore", ".dvc/plots", ".dvcignore", ".gitignore",
        "data/.gitignore", "data/report/.gitignore", "automations.yaml", "dvc.yaml", "params.yaml",
        "prefect.yaml", "pyproject.toml")  # fmt: skip
PLOTS_PAGE = Path(".dvc/plots.html")
SMALL = {
    "ingest": {"sources": [{"path": "photos", "domain": "garden"}], "split": {"val": 0.2, "test": 0.2}},
    "backbone": {"name": "shufflenet_v2_x0_5", "weights": "random", "image_size": 32, "crop_fraction": 1.0},
    "head": {"l2": [10.0, 0.1]},
    "finetune": {
        "stages": [
            {"unfreeze": "last_block", "epochs": 1, "lr": 0.001},
            {"unfreeze": "all", "epochs": 1, "lr": 0.0005},
        ]
    },
    "evaluate": {
        "mistakes": 10,
        "label_issues": 0,
        "learning_curve": False,
        "explain": False,
    },  # tests/rootstock/evaluation has them
    "retrain": {"margin": 0.6},  # nine test images could not show a smaller loss
}
# Two files show seconds; everything else is to be the same from either entry point, on any machine.
TIMED = ("data/report/timings.json", "data/report/report.html")


def long_finetune(epochs: int) -> dict[str, Any]:
    """Return values of the section `finetune` to kill a run in: a checkpoint comes every second or so."""
    return {
        "stages": [{"unfreeze": "all", "epochs": epochs, "lr": 0.0005}],
        "batch_size": 8,
        "checkpoint_minutes": 0.02,
    }


def without_seconds(lock: bytes) -> dict[str, Any]:
    """Read a dvc.lock, without the digests and sizes of the files that show seconds.

    Which of ingest and backbone comes first says which ended first: the flow runs them side by side.
    """
    document: dict[str, Any] = YAML(typ="safe").load(lock)
    for stage in document["stages"].values():
        for file in [*stage.get("deps", []), *stage.get("outs", [])]:
            if file["path"] in TIMED:
                del file["md5"], file["size"]
    return document


def draw_photo(path: Path, label: str, seed: int) -> None:
    """Draw a smooth random pattern in the colour of its class: no two look alike to a perceptual hash."""
    rng = np.random.default_rng([seed, *label.encode()])
    pattern = Image.fromarray(rng.integers(0, 255, (6, 6), np.uint8)).resize((48, 40), Image.Resampling.BICUBIC)
    grey = np.asarray(pattern, float)[:, :, None] / 255
    pixels = (0.35 * grey + 0.65) * np.array(CLASSES[label]) + rng.normal(0, 6, (40, 48, 3))
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path)


def draw_photos(folder: Path, each: int, first: int = 0) -> None:
    """Draw `each` photos of every class."""
    for label in CLASSES:
        for number in range(first, first + each):
            draw_photo(folder / label / f"{number:03d}.png", label, number)


on_one_server: dict[str, str] = {}  # what leads there, in modules whose flows share one


@dataclass(frozen=True)
class Workspace:
    """A folder to run the project in, as a person on a terminal would."""

    root: Path
    env: dict[str, str]

    def run(
        self, *command: str, check: bool = True, timeout: float = 300, **env: str
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in the workspace, for some seconds at most."""
        done = subprocess.run(
            command,
            cwd=self.root,
            env=self.env | on_one_server | env,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        if check and done.returncode:
            raise AssertionError(f"{' '.join(command)} failed:\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}")
        return done

    def repro(self) -> str:
        """Run `dvc repro`."""
        return self.run("dvc", "repro").stdout

    def flow(self, **env: str) -> str:
        """Run the flow; returns the table that a person sees."""
        return self.run(sys.executable, "-m", "flows.pipeline", **env).stdout

    def status(self) -> dict:
        """Ask DVC what is not up to date."""
        return json.loads(self.run("dvc", "status", "--json").stdout)

    def set(self, **sections: dict) -> None:
        """Change some values of params.yaml."""
        yaml = YAML()
        document = yaml.load(self.root / "params.yaml")
        for section, values in sections.items():
            document[section].update(values)
        with (self.root / "params.yaml").open("w") as file:
            yaml.dump(document, file)

    def outputs(self) -> dict[str, bytes]:
        """Read every output that has to be the same for everybody."""
        paths = [*sorted((self.root / "data").rglob("*")), self.root / "dvc.lock"]
        named = {str(path.relative_to(self.root)): path for path in paths if path.is_file()}
        made = {name: path for name, path in named.items() if name not in TIMED and not name.startswith("data/inbox/")}
        return {name: path.read_bytes() for name, path in made.items()}

    def copy(self, root: Path) -> "Workspace":
        """Copy everything, as it is."""
        shutil.copytree(self.root, root, symlinks=True)
        return Workspace(root, self.env)


def environment(prefect_home: Path) -> dict[str, str]:
    """Return environment variables that keep processes on this machine and apart from each other."""
    bin_folder = str(Path(sys.executable).parent)
    quiet = {"DO_NOT_TRACK": "1", "PREFECT_SERVER_ANALYTICS_ENABLED": "false", "DVC_NO_ANALYTICS": "1"}
    git = {f"GIT_{who}_{what}": "test@example.invalid" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("PREFECT_", "GIT_", "DVC_"))}
    path = f"{bin_folder}{os.pathsep}{os.environ['PATH']}"
    return clean | quiet | git | {"PATH": path, "PREFECT_HOME": str(prefect_home), "PYTHONWARNINGS": "ignore"}


def make_workspace(root: Path, prefect_home: Path, *, git: bool = True) -> Workspace:
    """Lay out the code with small parameters and 45 photos, and commit it."""
    for name in CODE:
        source, target = ROOT / name, root / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target)
        else:
            shutil.copy(source, target)
    if (ROOT / PLOTS_PAGE).exists():  # or the first flow makes it, in a second and a half
        shutil.copy(ROOT / PLOTS_PAGE, root / PLOTS_PAGE)
    draw_photos(root / "photos", each=15)
    workspace = Workspace(root, environment(prefect_home))
    workspace.set(**SMALL)
    if git:
        for command in (["init", "-q", "-b", "main"], ["add", "."], ["commit", "-qm", "start"]):
            workspace.run("git", *command)
    return workspace

"""`import rootstock`: a model, features and a manifest from any folder, without Prefect and DVC."""

import subprocess
import sys

import numpy as np
import pytest

import rootstock
from rootstock.dataset import tables
from rootstock.features.reader import Features
from rootstock.model.model import Model
from rootstock.system.errors import SourceError
from tests.imports import ROOT
from tests.small_dataset import small_dataset, small_features

# As where neither is installed: importing them fails.
ALONE = """
import sys
sys.modules.update(prefect=None, dvc=None, scmrepo=None, fastapi=None, sqlalchemy=None)
sys.path.append(sys.argv[1])
import rootstock
model = rootstock.load_model(sys.argv[2])
print(model.predict(sys.argv[3])[0].label, *model.embed(sys.argv[3]).shape)
"""


def test_a_model_predicts_in_any_folder_where_neither_prefect_nor_dvc_is_installed(evaluated, base, tmp_path):
    _, folder = evaluated
    row = small_dataset(base).manifest.iloc[0]
    image = base / "small" / row["source"] / row["path"]
    command = [sys.executable, "-I", "-c", ALONE, str(ROOT), str(folder / "model"), str(image)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.split() == [rootstock.load_model(folder / "model").predict(image)[0].label, "1", "1024"], done
    assert not list(tmp_path.iterdir())


def test_importing_rootstock_takes_no_time():
    timed = "import time; t = time.perf_counter(); import rootstock; print(time.perf_counter() - t)"
    done = subprocess.run([sys.executable, "-c", timed], cwd=ROOT, capture_output=True, text=True, check=True)
    assert float(done.stdout) < 0.2


def test_features_come_in_the_order_of_the_rows(base, folder, tmp_path):
    (tmp_path / folder.name).symlink_to(folder)  # alone: other tests have other features beside it
    small = small_dataset(base)
    manifest = rootstock.read_manifest(small.dataset)
    assert manifest.equals(tables.load_manifest(small.dataset))
    shuffled = manifest.sample(frac=0.7, random_state=0)
    expected = dict(zip(*_all(folder, manifest), strict=True))
    got = rootstock.read_features(tmp_path, shuffled)
    assert got.dtype == np.float32 and got.shape == (len(shuffled), 1024)
    for image_id, row in zip(shuffled["image_id"], got, strict=True):
        assert np.array_equal(row, expected[image_id])
    assert np.array_equal(rootstock.read_features(str(folder), shuffled), got)
    assert rootstock.read_features(folder, manifest.iloc[:0]).shape[0] == 0


def _all(folder, manifest) -> tuple[list[str], np.ndarray]:
    ordered = manifest.sort_values(["shard", "offset"])
    return ordered["image_id"].tolist(), np.concatenate([x for x, _ in Features(folder, ordered)])


def test_a_cache_of_several_kinds_of_features_asks_which(base, tmp_path):
    manifest = small_dataset(base).manifest
    for name in ("one", "other"):
        (tmp_path / name).symlink_to(small_features(base))
    with pytest.raises(SourceError, match=r"has features of several kinds; name one of \S+/one, \S+/other"):
        rootstock.read_features(tmp_path, manifest)
    (tmp_path / "none").mkdir()
    with pytest.raises(SourceError, match=r"none has no features"):
        rootstock.read_features(tmp_path / "none", manifest)
    with pytest.raises(SourceError, match=r"nowhere does not exist; expected a folder of features"):
        rootstock.read_features(tmp_path / "nowhere", manifest)


def test_the_names_are_those_of_the_documentation():
    assert rootstock.__all__ == ["Model", "load_model", "read_features", "read_manifest"]
    assert rootstock.Model is Model
    with pytest.raises(AttributeError, match="has no attribute 'predict'"):
        rootstock.predict  # noqa: B018


@pytest.mark.parametrize("missing", ["prefect", "dvc"])
def test_the_flows_say_what_to_install_where_prefect_or_dvc_is_missing(missing):
    code = f"import sys; sys.modules['{missing}'] = None; import flows.pipeline"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stderr == "The flows need Prefect and DVC: pip install -c constraints.txt -e '.[pipeline]'\n"

"""Group names: from a column of a table, or by a regular expression on paths."""

import logging
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rootstock.system.errors import SourceError
from tests.images import put
from tests.patients import PATIENT, named, put_patients, source


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_column_names_groups_and_the_expression_applies_where_it_is_empty(store, tmp_path, kind, caplog):
    caplog.set_level(logging.INFO)
    put_patients(tmp_path, range(12))
    paths = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*/patient_*/*.png"))
    groups = ["  Dr. Who " if "patient_1/" in path else "" for path in paths]
    columns = {"path": paths, "label": [path.split("/")[0] for path in paths], "group": groups}
    if kind == "csv":
        rows = ["path,label,group", *map(",".join, zip(*columns.values(), strict=True))]
        put(tmp_path / "list.csv", "\n".join(rows).encode())
    else:
        pq.write_table(pa.table(columns), tmp_path / "list.parquet")
    store.ingest(source(tmp_path / f"list.{kind}", group=r"/(?P<group>patient_\d)/"))
    found = named(store).groupby("group", dropna=False)["path"].agg(lambda path: path.str.split("/").str[1].unique()[0])
    assert found["Dr. Who"] == "patient_1" and len(found) == 11
    note = "10 named groups; 6 of 36 images are in none (e.g. ill/patient_10/0.png)"
    assert store.summary["sources"][0]["notes"] == [note]


def test_a_column_of_groups_needs_no_expression(store, tmp_path):
    put_patients(tmp_path, range(10))
    paths = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*/patient_*/*.png"))
    rows = [f"{path},{path.split('/')[0]},{int(path.split('_')[1].split('/')[0]) // 2}" for path in paths]
    put(tmp_path / "list.csv", "\n".join(["path,label,group", *rows]).encode())
    store.ingest(tmp_path / "list.csv")
    assert store.summary["groups"]["named"] == 5
    assert (named(store).groupby("group")["split"].nunique() == 1).all()


@pytest.mark.parametrize("name", ["scans", "scans.zip"])
def test_an_expression_that_matches_no_path_is_an_error_before_splits_are_drawn(store, tmp_path, name):
    put_patients(tmp_path / "scans", range(6))
    shutil.make_archive(str(tmp_path / "scans"), "zip", tmp_path / "scans")
    with pytest.raises(SourceError) as error:
        store.ingest(source(tmp_path / name, group=r"(?P<group>Patient\d+)"))
    assert f"{tmp_path / name}: group is '(?P<group>Patient" in str(error.value)
    assert "matches none of 18 paths (e.g. ill/patient_0/0.png); expected a regular expression" in str(error.value)
    assert not (store.dataset / "ledger.parquet").exists()


def test_ascii_character_classes_are_an_error_if_paths_have_other_letters(store, tmp_path):
    photos = put_patients(tmp_path / "scans", range(6))
    (photos / "ill" / "patient_0").rename(photos / "ill" / "Mu\u0308ller_0")
    with pytest.raises(SourceError, match=r"know only ASCII letters, but there are others, e.g. in ill/Müller_0/0.png"):
        store.ingest(source(photos, group=r"(?P<group>\w+)/\d+.png"))
    store.ingest(source(photos, group=r"(?P<group>[\pL_]+\d+)/"))
    assert "Müller_0" in set(named(store)["group"])


def test_an_expression_that_backtracks_exponentially_elsewhere_takes_no_time(store, tmp_path):
    photos = put_patients(tmp_path / "scans", range(6))
    put(photos / "ill" / ("a" * 200 + "!.png"), 1)
    store.ingest(source(photos, group=r"(?P<group>(?:(?:[a-z]+_?)+)+\d)/"))
    assert store.summary["groups"]["named"] == 6


def test_group_ids_follow_corrected_names(store, tmp_path):
    put_patients(tmp_path, range(12))
    paths = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*/patient_*/*.png"))

    def write(moved: str) -> Path:
        rows = [f"{path},{path.split('/')[0]},{'x' if path == moved else path.split('/')[1]}" for path in paths]
        return put(tmp_path / "list.csv", "\n".join(["path,label,group", *rows]).encode())

    store.ingest(write(""))
    assert store.manifest["group_id"].nunique() == 12
    store.ingest(write(paths[0]))
    assert store.manifest["group_id"].nunique() == 13
    store.ingest(write(""))
    assert store.manifest["group_id"].nunique() == 12


def test_an_unreachable_source_keeps_its_names(store, tmp_path):
    scans, other = put_patients(tmp_path / "scans", range(6)), put_patients(tmp_path / "other", range(10, 16))
    store.ingest(source(scans, group=PATIENT), source(other, group=PATIENT))
    scans.rename(tmp_path / "away")
    put(other / "ill" / "patient_10" / "more.png", 9)
    store.ingest(source(scans, group=PATIENT), source(other, group=PATIENT))
    assert store.summary["groups"]["named"] == 12

"""The table of backbones measured on a dataset: what is replaced, and that damage is noticed."""

from dataclasses import replace

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rootstock.evaluation import compare_table
from rootstock.evaluation.compare_table import Row, merge
from rootstock.system.errors import DamagedError
from rootstock.training.checkpoints import Epoch
from tests.compared import ROW

EPOCHS = [Epoch(0, "all", epoch, 1.0, 1.0, 0.5) for epoch in (0, 1)]


def test_a_candidate_tried_again_replaces_its_own_row_and_no_other():
    table = merge(merge(pd.DataFrame(), ROW), replace(ROW, layer="low", accuracy=0.5))
    table = merge(table, replace(ROW, accuracy=0.9))
    assert sorted(zip(table["layer"], table["accuracy"], strict=True)) == [("low", 0.5), ("penultimate", 0.9)]
    assert len(merge(table, replace(ROW, data="another version"))) == 3
    assert len(merge(table, replace(ROW, image_size=64))) == 3


def test_a_failure_replaces_only_a_failure_and_measurements_stay():
    failed = replace(ROW, accuracy=None, image_size=None, origin=None, reason="no network")
    table = merge(merge(merge(pd.DataFrame(), ROW), failed), replace(failed, reason="still none"))
    assert list(table["reason"]) == ["", "still none"]
    assert list(merge(table, ROW)["reason"]) == [""]


def test_the_table_is_read_as_it_was_written(tmp_path):
    assert compare_table.read(tmp_path / "compare.parquet").empty
    table = merge(pd.DataFrame(), ROW)
    compare_table.write(tmp_path / "compare.parquet", table)
    again = merge(compare_table.read(tmp_path / "compare.parquet"), replace(ROW, layer="low"))
    assert list(again["layer"]) == ["penultimate", "low"]


def test_a_damaged_table_is_an_error_that_names_it(tmp_path):
    path = tmp_path / "compare.parquet"
    compare_table.write(path, pd.DataFrame([ROW, replace(ROW, backbone="alexnet", variant="x", accuracy=None)]))
    whole = pq.read_table(path)
    better = whole.set_column(whole.column_names.index("accuracy"), "accuracy", pa.array([1.0, 1.0]))
    for changed in (better, whole.slice(1), whole.take([1, 0])):
        pq.write_table(changed, path)
        with pytest.raises(DamagedError, match=r"compare\.parquet is damaged \(its rows do not match its digest"):
            compare_table.read(path)
    pq.write_table(better.replace_schema_metadata(), path)  # an earlier version's has no digest
    assert compare_table.read(path)["accuracy"].tolist() == [1.0, 1.0]


def test_a_curve_replaces_that_of_the_same_network_and_input_alone(tmp_path):
    path = tmp_path / "curves.parquet"

    def curves(*rows: Row) -> pd.DataFrame:
        for row in rows:
            compare_table.write(path, compare_table.merge_curves(compare_table.read_curves(path), row, EPOCHS))
        return compare_table.read_curves(path)

    assert compare_table.read_curves(path).empty
    own = [ROW, replace(ROW, image_size=64), replace(ROW, origin="random, seed 1"), replace(ROW, variant="x")]
    kept = curves(*own, replace(ROW, data="another version"), *own)
    assert len(kept) == 5 * len(EPOCHS) and len(kept.drop_duplicates(compare_table.CURVE)) == 5
    assert kept["val_accuracy"].notna().all()


def test_the_curve_of_an_earlier_version_is_read_and_replaced(tmp_path):
    path = tmp_path / "curves.parquet"
    earlier = pd.DataFrame(EPOCHS).assign(name=ROW.backbone, data=ROW.data)
    compare_table.write(path, earlier)
    kept = compare_table.read_curves(path)
    assert kept["image_size"].isna().all() and len(kept) == len(EPOCHS)
    assert list(compare_table.merge_curves(kept, ROW, EPOCHS)["image_size"]) == [32, 32]

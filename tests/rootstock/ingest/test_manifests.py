"""Tables with one row per image as sources: their columns, the files that they name, and what makes one an error."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.local import LocalFileSystem

from rootstock.images.inspection import MAX_FILE_BYTES, Reason
from rootstock.ingest import manifests
from rootstock.ingest.layout import SPLITS
from rootstock.ingest.sources import Unreachable
from rootstock.system.errors import SourceError
from tests.images import put
from tests.listing import contents, drawn, labels, manifest, problems, splits


def test_a_csv_manifest_lists_paths_and_labels(listed, tmp_path, five_photos):
    manifest(tmp_path / "list.csv", "path,label\nphotos/ants/00.png,007\nphotos/bees/00.png,true\n")
    source = listed(tmp_path / "list.csv")
    assert labels(source) == {"photos/ants/00.png": "007", "photos/bees/00.png": "true"}
    assert {item.domain for item in source.items} == {"garden"}
    assert contents(source) == {"photos/ants/00.png": drawn(0), "photos/bees/00.png": drawn(3)}


def test_other_columns_of_a_csv_are_not_read_whatever_they_hold(listed, five_photos):
    numbers = "".join(f"ants/00.png,ants,{number},{'x' * 100}\n" for number in range(20_000))  # more than a block
    manifest(five_photos / "list.csv", f"path,label,1st,1st\n{numbers}bees/00.png,bees,no number,\n")
    source = listed(five_photos / "list.csv")
    assert labels(source) == {"ants/00.png": "ants", "bees/00.png": "bees"} and len(source.items) == 20_001


def test_columns_of_a_tsv_manifest_are_separated_by_tabs(listed, tmp_path, five_photos):
    manifest(five_photos / "list.TSV", "label\tpath\nants, red\tants/00.png\n")
    assert labels(listed(five_photos / "list.TSV")) == {"ants/00.png": "ants, red"}


def test_domain_and_split_columns_apply_to_the_rows_in_which_they_are_filled(listed, five_photos):
    rows = "ants/00.png,ants,,train\nants/01.png,ants,meadow,Valid\nants/02.png,ants,meadow,\n"
    source = listed(manifest(five_photos / "list.csv", "path,label,domain,split\n" + rows))
    assert [(item.domain, item.splits) for item in source.items] == [
        ("garden", ("train",)),
        ("meadow", ("val",)),
        ("meadow", SPLITS),
    ]
    assert source.notes == ["2 of 3 rows give their split; those of the others are drawn"]


def test_a_split_column_without_test_rows_is_treated_like_folders_without_test(listed, five_photos):
    rows = "ants/00.png,ants,train\nbees/00.png,bees,val\n"
    source = listed(manifest(five_photos / "list.csv", "path,label,split\n" + rows))
    assert list(splits(source).values()) == [("train", "val"), ("test",)]
    assert source.notes == ["no test row: val becomes the test split, and validation is drawn from train"]


def test_a_parquet_manifest_may_have_labels_of_any_type(listed, five_photos):
    for labels_, expected in (
        (pa.array([7, 12]), ["7", "12"]),
        (pa.array(["a", "b"]).dictionary_encode(), ["a", "b"]),
        (pa.array(["a", None]), ["a"]),
    ):
        table = pa.table({"path": ["ants/00.png", "bees/00.png"], "label": labels_, "other": [b"x", b"y"]})
        pq.write_table(table, five_photos / "list.parquet")
        assert list(labels(listed(five_photos / "list.parquet")).values()) == expected


# Paths and spellings


def test_backslashes_in_paths_are_separators_unless_a_file_has_that_name(listed, five_photos):
    put(five_photos / "odd\\name.png", 70)
    rows = "ants\\00.png,a\n.\\bees\\01.png,b\nodd\\name.png,c\nants\\gone.png,a\n"
    source = listed(manifest(five_photos / "list.csv", "path,label\n" + rows))
    assert labels(source) == {"ants/00.png": "a", "bees/01.png": "b", "odd\\name.png": "c"}
    assert problems(source) == {"ants\\gone.png": Reason.UNREADABLE}
    assert source.notes == ["2 paths have backslashes, read as slashes (e.g. ants\\00.png)"]


def test_split_names_and_labels_of_rows_are_normalised(listed, five_photos):
    rows = 'ants/00.png," ants",Training\nants/01.png,ants ,dev\nants/02.png,"fire  ants",hold-out\n'
    source = listed(manifest(five_photos / "list.csv", "path,label,split\n" + rows))
    assert [(item.label, item.splits) for item in source.items] == [
        ("ants", ("train",)), ("ants", ("val",)), ("fire ants", ("test",))
    ]  # fmt: skip


def test_absolute_paths_are_listed_relative_to_the_manifest(listed, tmp_path, five_photos):
    elsewhere = put(tmp_path / "elsewhere" / "1.png", 50)
    rows = [five_photos / "ants" / "00.png", elsewhere, f"file://{five_photos}/bees/00.png", "./bees/01.png"]
    manifest(five_photos / "list.csv", "path,label\n" + "".join(f"{row},x\n" for row in rows))
    source = listed(five_photos / "list.csv")
    assert contents(source) == {
        "../elsewhere/1.png": drawn(50),
        "ants/00.png": drawn(0),
        "bees/00.png": drawn(3),
        "bees/01.png": drawn(4),
    }


def test_rows_are_read_some_at_a_time_and_each_file_is_looked_up_once(listed, tmp_path, five_photos, monkeypatch):
    asked = []
    look_up = LocalFileSystem.info
    monkeypatch.setattr(LocalFileSystem, "info", lambda self, path, **_: asked.append(path) or look_up(self, path))
    monkeypatch.setattr(manifests, "ROWS", 2)
    rows = [
        ("bees/01.png", "b", "r0"), ("ants/00.png", "a", "r1"), (f"{five_photos}/bees/00.png", "b", "r2"),
        ("ants/01.png", "a", "r3"), ("ants/01.png", "c", "r4"), ("./ants/00.png", "a", "r5"),
        ("ants\\02.png", "a", "r6"), ("ants/01.png", "a", "r7"), (f"{put(tmp_path / 'else/1.png', 50)}", "b", "r8"),
    ]  # fmt: skip
    text = "".join(",".join(row) + "\n" for row in rows)
    source = listed(manifest(five_photos / "list.csv", "path,label,domain\n" + text))
    assert [(item.path, item.label, item.domain) for item in source.items] == [
        ("../else/1.png", "b", "r8"), ("ants/00.png", "a", "r1"), ("ants/00.png", "a", "r5"),
        ("ants/01.png", "a", "r3"), ("ants/01.png", "c", "r4"), ("ants/01.png", "a", "r7"),
        ("ants/02.png", "a", "r6"), ("bees/00.png", "b", "r2"),
        ("bees/01.png", "b", "r0"),
    ]  # fmt: skip
    assert contents(source)["../else/1.png"] == drawn(50) and contents(source)["ants/02.png"] == drawn(2)
    assert sum(path.endswith("ants/01.png") for path in asked) == 1
    assert source.notes == ["1 paths have backslashes, read as slashes (e.g. ants\\02.png)"]


# Errors


def test_a_missing_column_is_an_error_that_names_the_existing_ones(listed, five_photos):
    for name in ("list.csv", "list.parquet"):
        if name.endswith("csv"):
            manifest(five_photos / name, "file,label\nants/00.png,ants\n")
        else:
            pq.write_table(pa.table({"file": ["a"], "label": ["b"]}), five_photos / name)
        with pytest.raises(SourceError, match=rf"{name}: no column 'path'; it has file, label"):
            listed(five_photos / name)


def test_a_csv_with_none_of_the_columns_is_an_error_that_names_the_existing_ones(listed, five_photos):
    with pytest.raises(SourceError, match=r"list.csv: no column 'path'; it has 00.png, 7\."):
        listed(manifest(five_photos / "list.csv", "00.png,7\n01.png,8\n"))


def test_an_invalid_split_is_an_error_that_names_the_row(listed, five_photos):
    manifest(five_photos / "list.csv", "path,label,split\nants/00.png,ants,both\n")
    with pytest.raises(SourceError, match=r"split of ants/00.png is 'both'; expected train, val or test"):
        listed(five_photos / "list.csv")


@pytest.mark.parametrize(
    "content",
    [b"", b"path,label\nonly one\n", b"path,label\n\xff\xfe,x\n"],
    ids=["empty", "missing value", "not UTF-8"],
)
def test_an_unreadable_csv_manifest_is_an_error(listed, five_photos, content):
    put(five_photos / "list.csv", content)
    with pytest.raises(SourceError, match=r"list.csv: not a readable manifest"):
        listed(five_photos / "list.csv")


def test_an_unreadable_parquet_manifest_is_an_error(listed, five_photos):
    put(five_photos / "list.parquet", b"PAR1 not really")
    with pytest.raises(SourceError, match=r"list.parquet: not a readable manifest"):
        listed(five_photos / "list.parquet")


def test_a_row_without_a_file_or_without_a_label_is_rejected(listed, five_photos):
    manifest(
        five_photos / "list.csv", "path,label\nants/00.png,ants\nants/gone.png,ants\nbees/00.png,\nants,ants\n,x\n"
    )
    assert problems(listed(five_photos / "list.csv")) == {
        "ants": Reason.UNREADABLE,
        "ants/gone.png": Reason.UNREADABLE,
        "bees/00.png": Reason.NO_LABEL,
    }


WRONG_TABLES = {
    "duplicate column": (b"path,label,label\na.png,a,b\n", "the column 'label' appears twice"),
    "no rows": (b"path,label\n", "lists no images"),
    "rows without paths": (b"path,label\n,a\n,b\n", "lists no images"),
    "empty file": (b"", "not a readable manifest"),
    "UTF-16": ("path,label\na.png,a\n".encode("utf-16"), "not a readable manifest|no column"),
    "semicolons": (b"path;label\na.png;a\n", "no column 'path'; it has path;label"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG_TABLES)
def test_an_invalid_csv_manifest_is_an_error_and_not_unreachable(listed, five_photos, name):
    content, said = WRONG_TABLES[name]
    with pytest.raises(SourceError, match=said) as error:
        listed(put(five_photos / "list.csv", content))
    assert not isinstance(error.value, Unreachable)


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"path": ["a.png"], "label": [["a"]]}, r"the column 'label' holds list<.*expected text"),
        ({"path": ["a.png"], "label": [{"x": 1}]}, r"the column 'label' holds struct<"),
        ({"path": [["a.png"]], "label": ["a"]}, r"the column 'path' holds list<"),
        ({"path": pa.array([], pa.string()), "label": pa.array([], pa.string())}, "lists no images"),
        ({"file": ["a.png"]}, "no column 'path'; it has file"),
    ],
)
def test_an_invalid_parquet_manifest_is_an_error_and_not_unreachable(listed, five_photos, columns, said):
    pq.write_table(pa.table(columns), five_photos / "list.parquet")
    whole = (five_photos / "list.parquet").read_bytes()
    with pytest.raises(SourceError, match=said) as error:
        listed(five_photos / "list.parquet")
    assert not isinstance(error.value, Unreachable)
    for cut in (1, len(whole) // 2, len(whole) - 1):
        with pytest.raises(SourceError, match="not a readable manifest") as error:
            listed(put(five_photos / "list.parquet", whole[:cut]))
        assert not isinstance(error.value, Unreachable)


# Limits


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("path", "rows"),
    [("ants/00.png", 20_000_000), ("a" * 2_000_000, 300)],
    ids=["millions of rows", "names of megabytes"],
)
def test_a_parquet_manifest_that_unpacks_to_many_times_its_size_is_an_error(listed, five_photos, path, rows):
    table = pa.table({"path": pa.repeat(path, rows).dictionary_encode(), "label": pa.repeat("ants", rows)})
    pq.write_table(table, five_photos / "labels.parquet", compression="zstd")
    assert (five_photos / "labels.parquet").stat().st_size < 2_000_000
    with pytest.raises(SourceError, match=r"labels.parquet: not a readable manifest: .* (rows|or more)"):
        listed(five_photos / "labels.parquet")


def test_a_million_urls_that_compress_to_almost_nothing_are_read(listed, tmp_path, monkeypatch):
    monkeypatch.setattr(manifests, "file_stamps", lambda _, places, __=None: ("1:a" for _ in places()))
    urls = [f"https://images.example.com/photos/{number % 1000:04d}/{number:08d}.jpg" for number in range(10**6)]
    table = pa.table({"path": urls, "label": pa.repeat("ants", len(urls))})
    path = tmp_path / "list.parquet"
    pq.write_table(table, path, compression="zstd", use_dictionary=False, column_encoding="DELTA_BYTE_ARRAY")
    assert path.stat().st_size < 600_000
    assert len(listed(path).items) == len(urls)


def test_an_oversized_manifest_is_an_error_before_it_is_read(listed, five_photos):
    with (five_photos / "labels.csv").open("w") as file:
        file.truncate(MAX_FILE_BYTES + 1)
    with pytest.raises(SourceError, match=r"labels.csv holds [\d,]+ bytes; expected a table of at most 536,870,912"):
        listed(five_photos / "labels.csv")


def test_a_manifest_with_too_many_columns_is_an_error(listed, tmp_path):
    with pytest.raises(SourceError, match="more than 10,000 columns"):
        listed(manifest(tmp_path / "list.csv", "path,label" + ",x" * 20_000 + "\n"))


def test_paths_of_a_table_at_the_root_of_its_store_are_relative_to_it_wherever_the_run_is(listed, memory, monkeypatch):
    memory.pipe("/photos/1.png", drawn(1))
    memory.pipe("/list.csv", b"path,label\nphotos/1.png,x\n")
    for folder in ("/", "/usr/lib"):
        monkeypatch.chdir(folder)
        assert contents(listed("memory://list.csv")) == {"photos/1.png": drawn(1)}


def test_rows_without_a_path_are_left_out_and_counted(listed, five_photos):
    source = listed(manifest(five_photos / "list.csv", "path,label\nants/00.png,x\n,y\nbees/00.png,y\n,\n"))
    assert labels(source) == {"ants/00.png": "x", "bees/00.png": "y"}
    assert source.notes == ["2 rows without a path, left out"]


def test_rows_that_leave_their_split_open_beside_others_are_counted(listed, tmp_path):
    for number in range(4):
        put(tmp_path / f"{number}.png", drawn(number))
    rows = [f"{number}.png,x,{split}" for number, split in enumerate(("train", "test", "", ""))]
    found = listed(manifest(tmp_path / "list.csv", "\n".join(["path,label,split", *rows]) + "\n"))
    assert "2 of 4 rows give their split; those of the others are drawn" in found.notes


def test_classes_named_like_a_missing_value_are_noted(listed, tmp_path):
    for number in range(4):
        put(tmp_path / f"{number}.png", drawn(number))
    rows = [f"{number}.png,{label}" for number, label in enumerate(("nan", "NA", "Nancy", ""))]
    found = listed(manifest(tmp_path / "list.csv", "\n".join(["path,label", *rows]) + "\n"))
    assert (
        "classes named like a missing value: NA, nan; an image whose label is unknown has an empty cell" in found.notes
    )

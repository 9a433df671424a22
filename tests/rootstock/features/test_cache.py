"""The feature cache: listing, selecting and pruning."""

import json
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rootstock.features import cache
from rootstock.features.cache import DAY, Selection, list_entries, prune, select, table
from rootstock.system.errors import RootstockError
from rootstock.system.files import mark_used, sweep

USED, OLD, OTHER = "0" * 12, "1" * 12, "2" * 12


def features(folder: Path, backbone: str, days: float, images: int = 3, **more) -> None:
    """Write two feature files, last used a given number of days ago."""
    folder.mkdir(parents=True)
    fields = {"backbone": backbone, "layer": "penultimate", "dtype": "float32", "engine": "torch eager"} | more
    for shard in ("000000-aaaaaaaa", "000001-bbbbbbbb"):
        names = pa.table({"image_id": [str(number) for number in range(images)]})
        described = names.replace_schema_metadata({"rootstock": json.dumps(fields)})
        pq.write_table(described, folder / f"{shard}.parquet")
    mark_used(folder, time.time() - days * DAY)


@pytest.fixture
def roots(tmp_path) -> list[Path]:
    """Two backbones in the pipeline's cache, one of them in use; one in the cache of comparisons."""
    roots = [tmp_path / "features", tmp_path / "tried"]
    features(roots[0] / USED, "resnet18", days=90)
    features(roots[0] / OLD, "vgg16", days=40, images=5)
    features(roots[1] / OTHER, "vgg16", days=0, layer="mid")
    return roots


def keys(entries) -> set[str]:
    return {entry.key for entry in entries}


def test_entries_are_listed(roots):
    found = {entry.key: entry for entry in list_entries(roots, [USED])}
    old = found[OLD]
    assert (old.backbone, old.files, old.images, old.in_use) == ("vgg16", 2, 10, False)
    assert old.bytes == sum(path.stat().st_size for path in old.folder.iterdir())
    assert found[USED].in_use and round(old.days_unused) == 40
    lines = table(list(found.values())).splitlines()
    assert len(lines) == 5 and len({len(line) for line in lines}) == 1
    row = next(line for line in lines if USED in line)
    for said in ("resnet18", "penultimate", "float32", "torch eager", "90 days ago", "in use"):
        assert said in row


def test_missing_empty_or_damaged_entries_do_not_prevent_a_listing(roots, tmp_path):
    (roots[0] / "empty").mkdir()
    (roots[0] / OLD / "000000-aaaaaaaa.parquet").write_bytes(b"PAR1 no more")
    found = {entry.key: entry for entry in list_entries([*roots, tmp_path / "nowhere"], [])}
    assert found["empty"].backbone == "?" and found["empty"].images == 0
    assert found[OLD].images == 5 and found[OLD].backbone == "vgg16"


def test_entries_are_selected_by_backbone_age_key_or_a_combination(roots):
    entries = list_entries(roots, [USED])
    assert keys(select(entries, Selection(backbone="vgg16"))) == {OLD, OTHER}
    assert keys(select(entries, Selection(older_than=30))) == {OLD}  # the one in use is older
    assert keys(select(entries, Selection(key=OTHER))) == {OTHER}
    assert keys(select(entries, Selection(backbone="vgg16", older_than=1))) == {OLD}
    assert select(entries, Selection(older_than=365)) == []
    assert not Selection() and Selection(older_than=0)


def test_features_in_use_are_never_pruned_and_the_error_says_what_to_do(roots):
    entries = list_entries(roots, [USED])
    for selection in (Selection(key=USED), Selection(backbone="resnet18"), Selection(key=USED, older_than=1)):
        with pytest.raises(
            RootstockError,
            match=rf"{USED} \(resnet18\) is in use by the current params.yaml .* then prune",
        ):
            select(entries, selection)


def test_a_misspelt_name_is_an_error_that_lists_the_valid_ones(roots):
    entries = list_entries(roots, [])
    with pytest.raises(
        RootstockError, match=r"No features are cached for backbone 'vgg'; expected one of: resnet18, vgg16"
    ):
        select(entries, Selection(backbone="vgg"))
    with pytest.raises(
        RootstockError, match=rf"No features are cached for key 'x'; expected one of: {USED}, {OLD}, {OTHER}"
    ):
        select(entries, Selection(key="x"))
    with pytest.raises(RootstockError, match="older_than is -1; expected a number of days"):
        select(entries, Selection(older_than=-1))


def test_pruning_a_key_removes_the_pointers_to_it(roots):
    pointers = {name: roots[0] / f"{name * 12}.json" for name in "abc"}
    pointers["a"].write_text(json.dumps({"key": OLD, "engine": "torch compiled"}))
    pointers["b"].write_text(json.dumps({"key": USED, "engine": "torch compiled"}))
    pointers["c"].write_text("no JSON")
    prune(select(list_entries(roots, [USED]), Selection(key=OLD)))
    assert {path.name for path in roots[0].iterdir()} == {USED, pointers["b"].name, pointers["c"].name}
    assert keys(list_entries(roots, [])) == {USED, OTHER}


def test_features_that_a_pointer_in_use_refers_to_are_in_use(roots):
    (roots[0] / f"{'a' * 12}.json").write_text(json.dumps({"key": OLD}))
    assert {entry.key for entry in list_entries(roots, ["a" * 12]) if entry.in_use} == {OLD}


def test_a_killed_prune_leaves_no_partial_key(roots, monkeypatch):
    def killed(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as until_killed, pytest.raises(KeyboardInterrupt):
        until_killed.setattr(cache.shutil, "rmtree", lambda path, ignore_errors=False: ignore_errors or killed())
        prune(select(list_entries(roots, [USED]), Selection(key=OLD)))
    assert keys(list_entries(roots, [])) == {USED, OTHER}
    sweep(roots[0])
    assert [path.name for path in roots[0].iterdir()] == [USED]


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (12_300, "12.3 kB"),
        (999_700, "1 MB"),
        (256e6, "256 MB"),
        (3.21e12, "3,210.0 GB"),
    ],
)
def test_sizes_are_formatted_for_display(size, expected):
    assert cache.format_bytes(size) == expected

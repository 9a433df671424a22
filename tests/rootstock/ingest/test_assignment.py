"""The splits of a dataset: assigned once, shared by near duplicates, and kept whatever is added and removed."""

from collections import Counter

from hypothesis import HealthCheck, given, settings, strategies as st
from PIL import Image

from rootstock.config import params
from rootstock.images.perceptual_hash import perceptual_hashes, thumbnail
from rootstock.ingest.ingest import IngestResult
from tests.images import nearly, picture, put, put_classes
from tests.store import CLASSES, Store


def test_split_folders_determine_the_splits_and_the_summary_notes_how(store, tmp_path):
    put_classes(tmp_path / "photos" / "train", {"ants": 10, "bees": 10})
    put_classes(tmp_path / "photos" / "val", {"ants": 3, "bees": 3}, first=50)
    store.ingest(tmp_path / "photos")
    manifest = store.manifest
    folder = manifest["path"].str.split("/").str[0]
    assert set(manifest.loc[folder == "val", "split"]) == {"test"}
    assert Counter(manifest.loc[folder == "train", "split"]) == {"train": 16, "val": 4}
    assert store.summary["sources"][0]["notes"] == [
        "no test folder: val becomes the test split, and validation is drawn from train"
    ]


def test_near_duplicates_share_a_split_and_a_group(store, tmp_path):
    photos = put_classes(tmp_path / "photos", {"ants": 20, "bees": 20})
    for number in range(20):
        put(photos / "ants" / f"{number:02d}b.png", nearly(picture(number)))
    store.ingest(photos)
    groups = store.manifest.groupby("group_id")
    assert (groups["split"].nunique() == 1).all()
    assert (groups.size() == 2).sum() == 20
    assert store.summary["near_duplicates"] == {"groups": 20, "images": 40}


def test_near_duplicates_in_train_and_test_folders_all_go_to_test(store, tmp_path):
    for number, split in enumerate(("train", "val", "test")):
        put_classes(tmp_path / "photos" / split, {"ants": 3, "bees": 3}, first=10 * number)
    twin = put(tmp_path / "photos" / "test" / "ants" / "twin.png", nearly(picture(1)))
    store.ingest(tmp_path / "photos")
    splits = dict(zip(store.manifest["path"], store.manifest["split"], strict=True))
    assert splits["train/ants/01.png"] == splits[f"test/ants/{twin.name}"] == "test"
    assert any("1 images are in another split than their folder" in n for n in store.summary["sources"][0]["notes"])


def three_in_a_row() -> list[Image.Image]:
    """Find pictures of which the second is within 4 bits of both others, but these are not of each other."""
    blends = [Image.blend(picture(1), picture(2), share / 200) for share in range(200)]
    hashes = perceptual_hashes([thumbnail(image) for image in blends])
    middle = max(at for at, phash in enumerate(hashes) if (phash ^ hashes[0]).bit_count() <= 4)
    last = next(at for at, phash in enumerate(hashes) if (phash ^ hashes[0]).bit_count() > 4 and at > middle)
    assert (hashes[middle] ^ hashes[last]).bit_count() <= 4
    return [blends[0], blends[middle], blends[last]]


def test_a_new_near_duplicate_of_images_in_two_splits_is_rejected_and_no_known_image_moves(store, tmp_path):
    first, bridge, last = three_in_a_row()
    photos = tmp_path / "photos"
    for number, split in enumerate(("train", "val", "test")):
        put_classes(photos / split, {"ants": 3, "bees": 3}, first=100 + 10 * number)
    put(photos / "train" / "ants" / "first.png", first)
    put(photos / "test" / "ants" / "last.png", last)
    store.ingest(photos)
    before = store.splits
    put(photos / "train" / "ants" / "bridge.png", bridge)
    for _ in range(2):
        assert store.ingest(photos).images == 20
        assert store.splits == before
        assert store.rejected == {"train/ants/bridge.png": "straddles_splits"}
    (photos / "test" / "ants" / "last.png").unlink()  # its split is kept, as it may come back
    store.ingest(photos)
    assert store.rejected == {"train/ants/bridge.png": "straddles_splits"}


def test_new_images_are_split_by_the_shares_and_no_known_image_moves(store, photos):
    store.ingest(photos)
    before = store.splits
    put_classes(photos, {"ants": 40}, first=200)
    (photos / "bees" / "00.png").unlink()
    store.ingest(photos)
    after = store.splits
    assert {image: split for image, split in after.items() if image in before} == {
        image: split for image, split in before.items() if image in after
    }
    assert Counter(store.manifest.loc[store.manifest["label"] == "ants", "split"]) == {"train": 28, "val": 6, "test": 6}


def test_an_image_that_was_removed_and_returns_keeps_its_split(store, photos):
    store.ingest(photos)
    before, paths = store.splits, [photos / "ants" / "00.png", photos / "bees" / "01.png", photos / "wasps" / "02.png"]
    contents = [path.read_bytes() for path in paths]
    for path in paths:
        path.unlink()
    assert store.ingest(photos).images == 12
    for path, content in zip(paths, contents, strict=True):
        put(path.with_stem("back"), content)
    assert store.ingest(photos) == IngestResult(images=15, new=0, rejected=0, changed=True)
    assert store.splits == before


def test_a_domain_added_later_has_all_splits_and_moves_no_known_image(store, tmp_path, photos):
    store.ingest(photos)
    before = store.splits
    more = params.Source(path=str(put_classes(tmp_path / "more", CLASSES, first=100)), domain="meadow")
    store.ingest(photos, more)
    assert before.items() <= store.splits.items()
    assert set(store.manifest.loc[store.manifest["domain"] == "meadow", "split"]) == {"train", "val", "test"}


@given(st.lists(st.lists(st.tuples(st.sampled_from(["ants", "bees"]), st.integers(0, 11)), max_size=8), max_size=3))
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_images_keep_their_splits_whatever_is_added_and_removed(tmp_path_factory, changes):
    root = tmp_path_factory.mktemp("history")
    store, photos = Store(root / "store"), put_classes(root / "photos", {"ants": 3, "bees": 3}, first=100)
    known: dict[str, str] = {}
    for change in [[], *changes]:
        for label, number in change:  # remove it if it exists, else add it
            path = photos / label / f"{number}.png"
            if path.exists():
                path.unlink()
            else:
                put(path, number + (20 if label == "bees" else 0))
        store.ingest(photos, allow_shrink=True)
        splits = store.splits
        assert all(known.get(image, split) == split for image, split in splits.items())
        known |= splits

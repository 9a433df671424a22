"""Images with more than eight bits per sample have one value range per source: set, inferred or asked for."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rootstock.config import params
from rootstock.dataset import shards
from rootstock.images import pixels
from rootstock.system.errors import SourceError
from tests.images import encoded, picture, put
from tests.store import Store


def deep_source(folder: Path, dims: dict[str, float], times: int = 257, kind: type = np.uint16, first: int = 0) -> Path:
    """Write a folder of deep grey TIFFs, `<class>/<nn>.tif`; each class with its own brightness."""
    for label, dim in dims.items():
        for number in range(first, first + 6):
            grey = np.asarray(picture(number + 100 * len(label), 40, 40, "L")).astype(float) * dim
            put(folder / label / f"{number:02d}.tif", encoded(Image.fromarray((grey * times).astype(kind)), "TIFF"))
    return folder


def brightness(store: Store) -> dict[str, float]:
    """Mean pixel value of each class in the shards, of 255."""
    manifest = store.manifest
    places = zip(*(manifest[name] for name in ("shard", "offset", "size", "image_id")), strict=True)
    with shards.Reader(store.images) as reader:
        seen = [np.asarray(pixels.decode(reader.image(*place))).mean() for place in places]
    return manifest.assign(mean=seen).groupby("label")["mean"].mean().to_dict()


def source_with(folder: Path, value_range: tuple[float, float] | None) -> params.Source:
    return params.Source(path=str(folder), domain="garden", value_range=value_range)


@pytest.mark.parametrize(("times", "kind"), [(4, np.uint16), (16, np.uint16), (1, np.float32), (100, np.int32)])
def test_an_unclear_value_range_is_an_error_until_it_is_set_and_then_applies_to_the_whole_source(
    store, tmp_path, times, kind
):
    folder = deep_source(tmp_path / "xray", {"dark": 0.3, "bright": 1.0}, times, kind)
    for _ in range(2):  # a run that stopped does not count as an answer
        with pytest.raises(SourceError, match=r"xray: .* have values \(\w+\) from [\d.]+ to [\d.]+; .*Set value_range"):
            store.ingest(folder)
    assert store.ingest(source_with(folder, (0, 255 * times))).new == 12
    seen = brightness(store)
    assert 0.25 < seen["dark"] / seen["bright"] < 0.35
    assert store.summary["sources"][0]["value_range"] == [0, 255 * times]
    before = store.bytes()
    assert not store.ingest(source_with(folder, (0, 255 * times))).changed and store.bytes() == before


def test_the_value_range_is_inferred_if_some_images_use_all_16_bits_however_dark_others_are(store, tmp_path):
    folder = deep_source(tmp_path / "xray", {"dark": 0.05, "bright": 1.0})
    assert store.ingest(folder).new == 12
    seen = brightness(store)
    assert seen["dark"] / seen["bright"] < 0.06
    assert store.summary["sources"][0]["value_range"] == [0, 65535]
    deep_source(folder, {"dark": 0.05}, first=6)  # later dark ones use the range of the earlier ones
    shutil.rmtree(store.scratch)
    assert store.ingest(folder).new == 6
    assert brightness(store)["dark"] < 10


def test_values_outside_the_value_range_are_a_warning(store, tmp_path, caplog):
    folder = deep_source(tmp_path / "xray", {"dark": 0.3, "bright": 1.0}, times=16)
    deep_source(folder, {"dark": 1 / 255}, 1, np.float32, first=6)  # of another dtype, with another range
    store.ingest(source_with(folder, (0, 1)))
    [said] = [record.getMessage() for record in caplog.records if "value_range" in record.getMessage()]
    assert re.search(r"xray: .*\(float32, uint16\) from 0\.\d+ to 4016, but value_range is \[0, 1\]", said)
    caplog.clear()
    shutil.rmtree(store.root)
    store.ingest(source_with(folder, (0, 4095)))
    assert "value_range" not in caplog.text


def test_the_value_range_of_packed_images_cannot_be_changed(store, tmp_path):
    folder = deep_source(tmp_path / "xray", {"dark": 0.3, "bright": 1.0}, times=16)
    store.ingest(source_with(folder, (0, 4095)))
    with pytest.raises(
        SourceError, match=r"value_range .* is \[0, 1023\], but its images were packed with \[0, 4095\]"
    ):
        store.ingest(source_with(folder, (0, 1023)))
    assert store.ingest(folder).images == 12  # omitted, it keeps its value


def test_8_bit_images_have_no_value_range(store, photos):
    store.ingest(source_with(photos, (0, 4095)))
    assert "value_range" not in store.summary["sources"][0]
    assert store.ingest(source_with(photos, (0, 1023))).images == 15

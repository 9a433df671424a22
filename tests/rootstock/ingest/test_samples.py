"""The embedded samples: images, classes and reproducibility."""

import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rootstock.config import params
from rootstock.dataset.tables import load_summary
from rootstock.ingest.ingest import ingest
from rootstock.ingest.samples import SAMPLES, SIDE, write_sample
from rootstock.system.errors import SourceError


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    """A folder with one subfolder per sample."""
    folder = tmp_path_factory.mktemp("samples")
    for name in SAMPLES:
        write_sample(name, folder / name)
    return folder


def images_of(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Pixels (n, side, side) and classes (n,) of a sample, in file order."""
    paths = sorted(folder.glob("*/*.png"), key=lambda path: path.name)
    pixels = np.stack([np.asarray(Image.open(path)) for path in paths])
    return pixels, np.array([int(path.parent.name) for path in paths])


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.png")}


def near_duplicates(pixels: np.ndarray) -> tuple[int, int]:
    """Count the pairs within 4 bits of pHash, and the images of the largest group that they chain to."""
    import imagehash
    from scipy.sparse.csgraph import connected_components

    bits = np.array([imagehash.phash(Image.fromarray(image)).hash.ravel() for image in pixels]).astype(int)
    distances = bits.sum(1)[:, None] + bits.sum(1)[None] - 2 * bits @ bits.T
    near = np.triu(distances <= 4, 1)
    return int(near.sum()), Counter(connected_components(near)[1]).most_common(1)[0][1]


def test_all_images_of_the_samples_are_ingested_without_a_warning(samples, tmp_path, caplog):
    (tmp_path / "scratch").mkdir()
    (tmp_path / "scratch" / "sample").symlink_to(samples)
    caplog.set_level("INFO")
    for domains, images, splits in (
        (["digits"], 1797, ["splits 70.1 / 15.0 / 14.9 % of 1,797 images, in 1,731 groups; "]),
        (["digits", "printed"], 2677, ["splits 70.1 / 15.0 / 14.9 % of 2,677 images, in 2,528 groups; "]),
        (["digits", "printed"], 2677, []),
    ):
        sources = tuple(params.Source(path=f"sample:{name}", domain=name) for name in domains)
        folders = (tmp_path / name for name in ("images", "dataset", "scratch"))
        taken = ingest(params.Ingest(sources=sources), 0, *folders)
        assert (taken.images, taken.rejected) == (images, 0)
        lines = [f"sample:{name}: class folders; 10 classes: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9" for name in domains]
        assert [record.message.partition("largest")[0] for record in caplog.records] == lines * bool(splits) + splits
        caplog.clear()
    assert load_summary(tmp_path / "dataset")["without"] == {"train": [], "val": [], "test": []}


def test_the_digits_are_those_of_scikit_learn_in_order(samples):
    from sklearn.datasets import load_digits

    pixels, classes = images_of(samples / "digits")
    assert pixels.shape == (1797, SIDE, SIDE)
    assert pixels.dtype == np.uint8
    assert (classes == load_digits().target).all()
    shrunk = pixels.reshape(1797, 8, SIDE // 8, 8, SIDE // 8).mean((2, 4))
    assert np.corrcoef(shrunk.ravel(), load_digits().images.ravel())[0, 1] > 0.98


def test_the_digits_have_75_pairs_of_near_duplicates_in_groups_of_at_most_seven(samples):
    assert near_duplicates(images_of(samples / "digits")[0]) == (75, 7)


def test_printed_digits_have_ten_classes_of_one_size(samples):
    pixels, classes = images_of(samples / "printed")
    assert pixels.shape[1:] == (SIDE, SIDE)
    counts = Counter(classes.tolist())
    assert sorted(counts) == list(range(10))
    assert len(set(counts.values())) == 1
    assert 600 <= len(classes) <= 1200


def test_no_printed_digit_comes_from_a_font_without_digits(samples):
    pixels, _ = images_of(samples / "printed")
    contrast = pixels.max((1, 2)).astype(int) - pixels.min((1, 2))
    assert contrast.min() > 60  # something is drawn in every image
    assert near_duplicates(pixels)[1] <= 10  # .notdef boxes would all look the same


def test_a_model_of_handwritten_digits_fails_on_printed_ones_which_can_be_learned(samples):
    from sklearn.neighbors import KNeighborsClassifier

    def small(pixels: np.ndarray) -> np.ndarray:
        """16 x 16 pixels, each image from 0 to 1."""
        means = pixels.reshape(len(pixels), 16, SIDE // 16, 16, SIDE // 16).mean((2, 4)).reshape(len(pixels), -1)
        means -= means.min(1, keepdims=True)
        return means / means.max(1, keepdims=True)

    (handwritten, digits), (printed, others) = (images_of(samples / name) for name in ("digits", "printed"))
    model = KNeighborsClassifier(1)
    assert model.fit(small(handwritten), digits).score(small(printed), others) < 0.3
    even, odd = slice(0, None, 2), slice(1, None, 2)
    assert model.fit(small(printed[even]), others[even]).score(small(printed[odd]), others[odd]) > 0.5


@pytest.mark.parametrize("name", SAMPLES)
def test_a_sample_has_the_same_bytes_every_time(samples, tmp_path, name):
    write_sample(name, tmp_path / name)
    assert bytes_of(tmp_path / name) == bytes_of(samples / name)


def test_writing_a_sample_replaces_the_contents_of_its_folder(tmp_path):
    (tmp_path / "printed" / "11").mkdir(parents=True)
    write_sample("printed", tmp_path / "printed")
    assert sorted(path.name for path in (tmp_path / "printed").iterdir()) == list("0123456789")
    assert [path.name for path in tmp_path.iterdir()] == ["printed"]


def test_an_unknown_sample_is_an_error_that_suggests_a_name(tmp_path):
    with pytest.raises(SourceError, match=r"sample:digit is not .* Did you mean sample:digits\?"):
        write_sample("digit", tmp_path / "x")
    assert not list(tmp_path.iterdir())


def test_importing_the_module_loads_no_heavy_library():
    heavy = "{'sklearn', 'matplotlib', 'PIL', 'numpy'}"
    code = f"import sys, rootstock.ingest.samples; print(*{heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "\n"

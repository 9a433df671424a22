"""Download public datasets with torchvision, and write them as folders of images.

    torchvision:Flowers102   ->   folder/train/pink primrose/image_06734.jpg, folder/val, folder/test
    torchvision:EuroSAT      ->   folder/AnnualCrop/AnnualCrop_1.jpg

torchvision handles downloads, archives and splits; images that exist as files are not decoded.
"""

import inspect
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.error import URLError

from rootstock.system import files, progress
from rootstock.system.errors import SourceError

if TYPE_CHECKING:
    from PIL.Image import Image

# The datasets of torchvision with one class per image that can be downloaded (StanfordCars no longer can).
# fmt: off
SETS = (
    "Caltech101", "Caltech256", "CIFAR10", "CIFAR100", "CLEVRClassification", "Country211", "DTD", "EMNIST",
    "EuroSAT", "FashionMNIST", "FGVCAircraft", "Flowers102", "Food101", "GTSRB", "Imagenette", "INaturalist",
    "KMNIST", "MNIST", "Omniglot", "OxfordIIITPet", "PCAM", "Places365", "QMNIST", "RenderedSST2", "SEMEION",
    "StanfordCars", "STL10", "SUN397", "SVHN", "USPS",
)
# fmt: on
# Split -> torchvision's names for it, of which the first that exists is used: `trainval` would repeat `val`.
SPLITS = {"train": ("train", "trainval", "train-standard"), "val": ("val", "valid"), "test": ("test",)}
ARCHIVES = (".gz", ".tgz", ".tar", ".zip")


def check_name(name: str) -> None:
    """Check that a dataset exists.

    Raises:
        SourceError: it does not; the message suggests the nearest names.
    """
    if name not in SETS:
        lowered = {known.lower(): known for known in SETS}
        nearest = [lowered[match] for match in get_close_matches(name.lower(), lowered)]
        raise SourceError(
            f"torchvision:{name} is not an image classification dataset of torchvision; expected one of "
            f"{', '.join(SETS)}." + (f" Did you mean {' or '.join(nearest)}?" if nearest else "")
        )


def write_torchvision_set(name: str, folder: Path, download_root: Path) -> None:
    """Download a dataset once and write it as `folder`/<split>/<class>/<file>, atomically.

    A dataset without splits is written as `folder`/<class>/<file>. Image files keep their names and bytes (hard
    links to the download, or copies if those are not possible); arrays are written as PNG files. Images without a
    label are left out.

    Args:
        name: one of `SETS`, in torchvision's default variant; for EMNIST the balanced one.
        folder: replaced if it exists.
        download_root: the download is kept as `download_root`/<name>; files already there are used as they are.

    Raises:
        SourceError: torchvision has no such dataset, it cannot be downloaded, or its files are incomplete.

    """
    check_name(name)
    root = download_root / name
    with _failing_as_source_error(name, root):
        splits = _splits(name)
        if not root.exists():
            _download(name, root, splits.values())
        with files.replacing_folder(folder) as temporary:
            for split, arguments in splits.items():
                _lay_out(_open(name, root, arguments), temporary / split, f"{name} {split}".strip())


def _splits(name: str) -> dict[str, dict[str, object]]:
    """Map each split to torchvision's arguments for it; "" if the dataset has no splits."""
    from torchvision import datasets

    if name == "EMNIST":  # its `split` selects the classes: balanced has 47, with lookalike upper and lower case merged
        return {split: {"split": "balanced", "train": split == "train"} for split in ("train", "test")}
    parameters = inspect.signature(getattr(datasets, name)).parameters
    if "train" in parameters:
        return {"train": {"train": True}, "test": {"train": False}}
    if "split" not in parameters:
        return {"": {}}
    try:
        getattr(datasets, name)(root=".", split="?")
    except ValueError as error:  # the only place where every dataset lists its splits
        allowed = re.findall(r"'([^']+)'", str(error).partition("Valid values are")[2])
    return {
        split: {"split": spellings[0]}
        for split, candidates in SPLITS.items()
        if (spellings := [spelling for spelling in candidates if spelling in allowed])
    }


def _open(name: str, root: Path, arguments: dict[str, object], download: bool = False) -> Any:  # noqa: ANN401
    """Construct the dataset; if it has a `loader` argument, its items become paths instead of images."""
    from torchvision import datasets

    set_class = getattr(datasets, name)
    loader = {"loader": Path} if "loader" in inspect.signature(set_class).parameters else {}
    return set_class(root=root, download=download, **loader, **arguments)


def _download(name: str, root: Path, splits: Iterable[dict[str, object]]) -> None:
    """Download and unpack under a temporary name, so that `root` is always complete."""
    unfinished = root.with_name(root.name + files.TEMPORARY)
    _remove_unpacked(unfinished)
    unfinished.mkdir(parents=True, exist_ok=True)
    try:
        for arguments in splits:
            _open(name, unfinished, arguments, download=True)
    except (URLError, ConnectionError, TimeoutError):
        raise  # the next run continues from what was downloaded
    except Exception:
        shutil.rmtree(unfinished)  # a damaged archive: FGVCAircraft has no checksum and would use it again
        raise
    unfinished.replace(root)


def _remove_unpacked(folder: Path) -> None:
    """Remove what a killed run unpacked, which torchvision would take as complete; archives are verified."""
    for path in sorted(folder.rglob("*"), reverse=True):  # files before their folder
        if path.is_dir():
            if not any(path.iterdir()):
                path.rmdir()
        elif not path.name.endswith(ARCHIVES):
            path.unlink()


def _lay_out(dataset: Any, folder: Path, what: str) -> None:  # noqa: ANN401
    """Write every labelled image of one split as `folder`/<class>/<file>."""
    names = _class_folders(dataset)
    items = progress.track(_items(dataset), f"writing {what}", len(dataset))
    for index, (image, label) in enumerate(items):
        if label is None or label < 0:
            continue
        class_folder = folder / (names[label] if names else f"{label:03d}")
        class_folder.mkdir(parents=True, exist_ok=True)
        if isinstance(image, str | Path):
            _link(Path(image), class_folder, index)
        elif file := getattr(image, "filename", None):  # of a PIL image that was opened but not converted
            _link(Path(file), class_folder, index)
        else:
            image.save(class_folder / f"{index:06d}.png", compress_level=1)


def _link(file: Path, folder: Path, index: int) -> None:
    """Link or copy a file into a folder, under a unique name."""
    target = folder / file.name
    if target.exists():
        target = folder / f"{index:06d}_{file.name}"
    try:
        target.hardlink_to(file)
    except OSError:  # another file system, or one without hard links
        shutil.copyfile(file, target)


def _items(dataset: Any) -> "Iterator[tuple[str | Path | Image, int | None]]":  # noqa: ANN401
    """Yield path and label, or image and label if the dataset has no image files."""
    # GTSRB and OxfordIIITPet have no loader argument: reading their lists avoids decoding every image.
    if hasattr(dataset, "_samples"):
        yield from dataset._samples
    elif hasattr(dataset, "_images"):
        yield from zip(dataset._images, dataset._labels, strict=True)
    else:
        for index in range(len(dataset)):
            yield dataset[index]


def _class_folders(dataset: Any) -> list[str]:  # noqa: ANN401
    """Return class names as unique, valid folder names; empty if the dataset has none."""
    attributes = ("classes", "categories", "all_categories", "_characters")
    classes: list[Any] = next((found for name in attributes if (found := getattr(dataset, name, None))), [])
    # Imagenette has tuples of synonyms, SUN397 names like apartment_building/outdoor.
    first = [name if isinstance(name, str) else name[0] for name in classes]
    names = [re.sub(r'[\x00-\x1f/\\:*?"<>|]+', "-", name).strip(" .-") for name in first]
    if len({name.casefold() for name in names if name}) < len(names):
        return [f"{index:03d} {name}".strip() for index, name in enumerate(names)]
    return names


@contextmanager
def _failing_as_source_error(name: str, root: Path) -> Iterator[None]:
    """Turn any error of torchvision, the network or an archive into one that says what failed and what to do."""
    try:
        yield
    except Exception as error:
        words = str(error).partition("You can use download=True")[0].split()  # drops advice for developers
        reason = " ".join(words).rstrip(".") or type(error).__name__
        if url := getattr(error, "url", None):
            reason += f" ({url})"
        if root.exists():
            remedy = f"If {root} is damaged, remove it to download it again."
        else:
            remedy = (
                f"Check the network connection and the disk space, or put its files under {root}, "
                f"unpacked as torchvision.datasets.{name} expects them; then run again."
            )
        raise SourceError(f"torchvision:{name} cannot be loaded: {reason}. {remedy}") from error

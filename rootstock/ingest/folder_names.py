"""Guess from folder names: splits, masks, cameras or years that are not classes, unlabelled images."""

import re
import unicodedata
from collections.abc import Collection, Iterable
from functools import lru_cache

SPLIT, COLLECTION_KIND = "a split", "a year, camera or batch"  # what a folder name may suggest
PLURAL = {SPLIT: "splits", COLLECTION_KIND: "years, cameras or batches"}
SPLIT_OF = {
    "train": ("train", "training", "trn", "trainval"),
    "val": ("val", "valid", "validation", "validate", "dev", "devel", "development", "eval", "evaluation"),
    "test": ("test", "testing", "tst", "tests", "holdout", "heldout"),
}
SPLIT_WORDS = {word: split for split, words in SPLIT_OF.items() for word in words}
# Words that go with a split, as in training_set, seg_train, train_images or TrainData.
AFFIXES = frozenset(
    {
        "set", "sets", "image", "images", "img", "imgs", "data", "dataset", "split", "seg", "folder", "files",
        "file", "photo", "photos", "picture", "pictures", "jpg", "jpeg", "png", "raw", "full", "subset",
        "samples", "the", "of", "px"
    }
)  # fmt: skip
UNLABELLED = frozenset(
    {
        "pred", "predict", "prediction", "predictions", "unlabelled", "unlabeled", "inference", "submission"
    }
)  # fmt: skip
# Files that describe the images, such as masks; not classes.
MASKS = frozenset(
    {
        "masks", "annotations", "annotation", "groundtruth", "segmentation", "segmentations",
        "segmentationclass", "segmentationobject", "segmentationmasks", "segmentationmask", "trimaps", "trimap",
        "bboxes", "boundingboxes", "labels", "heatmaps", "imagesets", "thumbnails", "thumbnail"
    }
)  # fmt: skip
MAYBE_MASKS = frozenset(
    {  # only next to a folder of images
        "mask", "gt", "label", "seg", "truth", "bbox", "depth", "overlay", "overlays"
    }
)  # fmt: skip
BESIDE_MASKS = AFFIXES | SPLIT_WORDS.keys() | {  # further words in the names of mask folders
    "instance", "semantic", "binary", "pixel", "object", "class", "color", "colour", "ground", "lesion", "panoptic"
}  # fmt: skip
CONTAINERS = frozenset(
    {
        "image", "images", "img", "imgs", "jpegimages", "pngimages", "photo", "photos", "picture", "pictures",
        "pics", "rgb", "raw", "input", "inputs", "original", "originals", "data", "frames", "jpg", "jpeg", "png"
    }
)  # fmt: skip
# When, where, with what or in which batch images were taken: collections of images, seldom classes.
LOT = (
    "cam|camera|cctv|site|batch|part|fold|session|day|week|month|year|season|run|vid|video|seq|sequence|device|trip|"
    "visit|loc|location|station|lot|chunk|disk|disc|sd|card|delivery|upload|scan|shoot|roll|take|trap|hive|drone|"
    "flight|sensor|rig|clip|frames?|patient|subject"
)
COLLECTION = re.compile(
    r"""
    (19|20)\d\d([-_. ]?(0?[1-9]|1[0-2]|q[1-4])([-_. ]?\d{1,2})?)?     # 2024, 2024-05, 2024_05_17
    | \d{1,2}[-_. ]\d{1,2}[-_. ](19|20)?\d\d                            # 17.05.2024
    | (jan(uary)?|feb(ruary)?|mar(ch)?|apr(il)?|may|june?|july?|aug(ust)?|sept?(ember)?|oct(ober)?|nov(ember)?
       |dec(ember)?|spring|summer|autumn|fall|winter)[-_. ]?(19|20)\d\d
    | (.*[-_. ])?(LOT|images?|imgs?|photos?|pictures?|data|dataset|folder|dir|directory|set|subset|split)[-_. ]?\d+
    | (LOT)[-_. ][a-z]
    | \d{3}[-_]?(canon|eos\w\w|nikon|apple|media|olymp|_pana|msdcf|gopro|andro|_fuji) | dcim   # created by cameras
    """.replace("LOT", LOT),
    re.VERBOSE,
)


@lru_cache(maxsize=100_000)
def words_of(name: str) -> tuple[str, ...]:
    """Split a name into its lower-case words: Train_Set2 is train, set."""
    plain = re.sub(r"\d+x\d+", " ", unicodedata.normalize("NFKC", name))
    return tuple(word.casefold() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|[^\W\d_A-Za-z]+", plain))


@lru_cache(maxsize=100_000)
def split_of(name: str) -> str:
    """Return the split that a folder name means (training_set, seg_train, train2017, Dev, hold-out), or ""."""
    words = [_bare(word) for word in words_of(name)]
    telling = [word for word in words if word not in AFFIXES] or words
    return SPLIT_WORDS.get("".join(telling), "")


def _bare(word: str) -> str:
    """Strip a suffix such as `set` from a word: trainset, testimages."""
    return next((rest for affix in AFFIXES if (rest := word.removesuffix(affix)) in SPLIT_WORDS), word)


def mentioned_split(name: str) -> str:
    """Return the split that a name mentions among other words (intel_train, dogs-test), or ""."""
    found = {SPLIT_WORDS[word] for word in map(_bare, words_of(name)) if word in SPLIT_WORDS}
    return found.pop() if len(found) == 1 else ""


def is_unlabelled(name: str) -> bool:
    """Whether a folder holds unlabelled images to predict, judging by its name."""
    return any(word in UNLABELLED for word in words_of(name))


def is_named_unlabelled(name: str) -> bool:
    """Whether a name means only that: `unlabelled` does, `unlabelled bottles` may be a class."""
    words = words_of(name)
    return any(word in UNLABELLED for word in words) and all(word in UNLABELLED | AFFIXES for word in words)


def is_container(name: str) -> bool:
    """Whether a folder name just means images, of any class."""
    return "".join(words_of(name)) in CONTAINERS


def is_collection(name: str) -> bool:
    """Whether a name is that of a camera, year, batch or similar."""
    plain = re.sub("(?<=[a-z])(?=[A-Z]$)", " ", unicodedata.normalize("NFKC", name).strip())  # CamA, but not `cams`
    return COLLECTION.fullmatch(plain.casefold()) is not None


def masks_among(names: Iterable[str]) -> set[str]:
    """Return those of some sibling folders that hold masks or annotations, judging by their names.

    Next to a folder of images one word is enough (`masks_png`, `gt`). Otherwise the name must mean only that, or be
    that of a sibling plus such a word (`ants`, `ant masks`): `gas masks` next to `helmets` is a class, and so is
    `masks` next to `no masks`.
    """
    words = {name: words_of(name) for name in names}
    if any(map(is_container, words)):
        return {name for name, own in words.items() if (MASKS | MAYBE_MASKS) & {*own, "".join(own)}}
    rest = {name: tuple(word for word in own if word not in MASKS | MAYBE_MASKS) for name, own in words.items()}
    alone = {
        name
        for name, own in words.items()
        if "".join(own) in MASKS or (MASKS & {*own} and all(word in BESIDE_MASKS for word in rest[name]))
    }
    stems = {"".join(own).removesuffix("s") for own in words.values()}
    of_others = {
        name for name, own in words.items()
        if rest[name] and own != rest[name] and "".join(rest[name]).removesuffix("s") in stems
    }  # fmt: skip
    about = {name for name, own in words.items() if MASKS & {*own}} - alone - of_others
    return set() if about else alone | of_others


def collections_among(tops: set[str]) -> set[str]:
    """Return the folders named after a year, camera or batch; 1984 among other numbers is just a number."""
    lots = set(filter(is_collection, tops))
    return set() if any(map(str.isdecimal, tops - lots)) else lots


def suspicious_names(new: Collection[str], all_names: set[str], *, is_first: bool) -> dict[str, set[str]]:
    """Group folder names that are unlikely to be classes by what they suggest instead.

    Args:
        new: the names to check.
        all_names: these, and the existing classes.
        is_first: whether no class is known yet; then `train` among other names counts as the vehicle.
    """
    vehicles = {name for name in new if name.casefold() == "train"} if is_first and len(new) > 2 else set()
    found = {
        SPLIT: set(filter(split_of, new)) - vehicles,
        "masks or annotations": masks_among(all_names),
        "unlabelled images": set(filter(is_named_unlabelled, new)),
        COLLECTION_KIND: set() if is_first else collections_among(all_names),  # else their contents tell more
    }
    return {kind: named for kind, named in found.items() if kind == SPLIT or named != all_names}


def describe_kind(kind: str, found: Collection[str]) -> str:
    """Return what folder names suggest, in singular or plural."""
    return kind if len(found) == 1 else PLURAL.get(kind, kind)

"""Describe what became of the groups: how close to the shares their splits are, and which could not be kept apart."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from rootstock.config import params
from rootstock.dataset import tables
from rootstock.images.perceptual_hash import HASH_BITS
from rootstock.ingest.layout import SPLITS
from rootstock.ingest.listings import OPEN
from rootstock.system.phrases import counted

MIN_GROUPS_PER_CLASS = 3  # one each for train, val and test
MAX_LISTED = 3  # classes or groups that a note lists
MAX_SPREAD = 3  # times ingest.near_duplicate_bits, in a group of images that are all alike
FEW_IMAGES, FAR_OFF = 100, 0.05  # shares of fewer images, or that differ less, are worth no warning
MIN_CHAIN, MIN_CHAIN_SHARE = 100, 0.1  # images of a group, and share of all, that a note is worth


def summarize(manifest: pd.DataFrame, notes: list[str]) -> dict[str, Any]:
    """Return the part of the summary about named groups; empty if there are none.

    Args:
        manifest: images in use, with `name`, the group name of each, null for none.
        notes: as returned by `describe`.
    """
    named = manifest.loc[manifest["name"].notna(), "name"]
    if named.empty:
        return {}
    return {"groups": {"named": int(named.nunique()), "images": len(named), "notes": notes}}


def describe(manifest: pd.DataFrame, first_path: Callable[["pd.Series[int]"], str]) -> list[str]:
    """Describe what a person should know of the groups: joined ones, divided ones, and classes with too few.

    Args:
        manifest: images in use.
        first_path: returns the first path, in their order, of some images.
    """
    return [note for note in (_joined(manifest), _divided(manifest, first_path), _few(manifest)) if note]


def by_class(manifest: pd.DataFrame) -> pd.DataFrame:
    """Return the number of images of each class, in order, in each split."""
    rows = tables.one_row_per_label(manifest)
    codes, labels = _codes(rows["label"])
    counts = np.bincount(codes * len(SPLITS) + rows["split"].cat.codes, minlength=len(labels) * len(SPLITS))
    table = pd.DataFrame(counts.reshape(len(labels), len(SPLITS)), index=labels, columns=list(SPLITS))
    return table[table.sum(axis=1) > 0].sort_index()


def _codes(labels: "pd.Series[str]") -> tuple[NDArray[np.int32], list[str]]:
    """Return labels as codes, and what these stand for."""
    column = labels.astype("category").cat
    codes: NDArray[np.int32] = column.codes.to_numpy().astype(np.int32)
    return codes, list(column.categories)


def describe_chain(near: NDArray[np.int32], hashes: NDArray[np.uint64], bits: int) -> str:
    """Describe a large group of images that are near duplicates of each other only by way of others; "" if none is.

    Args:
        near: (n,) the number of each image's group by near duplicates.
        hashes: (n,) of the images.
        bits: ingest.near_duplicate_bits.
    """
    counts = np.bincount(near, minlength=1)
    if counts.max() < max(MIN_CHAIN, MIN_CHAIN_SHARE * len(near)):
        return ""
    members = hashes[near == counts.argmax()]
    spread = int(np.bitwise_count(members ^ members[0]).max())
    if spread <= MAX_SPREAD * bits:
        return ""
    return (
        f"Near duplicates chain {len(members):,} of {len(near):,} images into one group, which is in one split; some "
        f"of them differ in {spread} of {HASH_BITS} bits. If they are not all alike (fixed cameras, scans and "
        "microscopy look alike to a perceptual hash), lower ingest.near_duplicate_bits, now "
        f"{bits}, or set it to 0 and name groups by `group`."
    )


def describe_splits(manifest: pd.DataFrame, files: pd.DataFrame, wanted: params.Split) -> str:
    """Describe the splits of the images whose source leaves them open, and how close they are to the wanted shares.

    Args:
        manifest: images in use.
        files: the files of all sources, with the splits that each allows.
        wanted: shares of val and test.
    """
    drawn = _drawn(manifest, files)
    if drawn.empty:
        return ""
    counts = by_class(drawn)
    off = 100 * counts.div(counts.sum(axis=1), axis=0).sub(_shares(wanted)).abs()
    return (
        f"splits {_percent(_reached(drawn))} % of {len(drawn):,} images, in "
        f"{counted(len(np.unique(drawn['group'])), 'group')}; largest deviation of a class from its share: "
        f"{off.to_numpy().max():.1f} points ({off.max(axis=1).idxmax()}, {off.max().idxmax()})"
    )


def describe_kept_splits(manifest: pd.DataFrame, files: pd.DataFrame, wanted: params.Split) -> str:
    """Describe that the splits, which are permanent, are not those that are asked for now; "" if they are.

    Args:
        manifest: images in use.
        files: the files of all sources, with the splits that each allows.
        wanted: shares of val and test.
    """
    drawn = _drawn(manifest, files)
    if len(drawn) < FEW_IMAGES or max(abs(_reached(drawn) - _shares(wanted))) <= FAR_OFF:
        return ""
    return (
        f"ingest.split asks for {_percent(_shares(wanted))} % (train, val, test), but {len(drawn):,} images keep the "
        f"splits that they were given, {_percent(_reached(drawn))} %. For new ones, remove data/dataset and run again "
        "(what came through the inbox has to be delivered again)."
    )


def _drawn(manifest: pd.DataFrame, files: pd.DataFrame) -> pd.DataFrame:
    """Return the images whose source leaves their split open."""
    is_open = (files["splits"] == OPEN).to_numpy()
    if is_open.all():
        return manifest
    return manifest[np.isin(manifest["image"], files["image"].to_numpy()[is_open], kind="table")]


def _reached(drawn: pd.DataFrame) -> NDArray[np.float64]:
    counts = drawn["split"].value_counts()
    return np.array([counts.get(split, 0) for split in SPLITS]) / len(drawn)


def _shares(wanted: params.Split) -> NDArray[np.float64]:
    return np.array([1 - wanted.val - wanted.test, wanted.val, wanted.test])


def _percent(shares: NDArray[np.float64]) -> str:
    return " / ".join(f"{100 * share:.1f}" for share in shares)


def describe_leaks(files: pd.DataFrame) -> str:
    """Describe the named groups that a source itself has in several splits; "" if there are none.

    Args:
        files: usable files of the source, with group and the splits that their folder or row allows.
    """
    return _describe_torn(_torn(_given(files)), "its own splits share")


def describe_leaks_between(files: pd.DataFrame) -> str:
    """Describe the named groups that are in several splits, but in no source itself; "" if there are none.

    Args:
        files: usable files of all sources, with source, group and the splits that their folder or row allows.
    """
    torn = _torn(_given(files))
    own = {name for _, of_source in torn.groupby("source", observed=True) for name in _torn(of_source)["group"]}
    return _describe_torn(torn[~torn["group"].isin(own)], "the given splits of several sources share")


def _given(files: pd.DataFrame) -> pd.DataFrame:
    """Return the files of a named group whose folder or row gives their split."""
    return files[(files["splits"] != OPEN) & files["group"].notna() & (files["group"] != "")]


def _torn(given: pd.DataFrame) -> pd.DataFrame:
    """Return the files of groups that no split allows as a whole."""
    splits, group = given["splits"].cat, given["group"].cat.codes.to_numpy()
    allowed = [sum(1 << SPLITS.index(split) for split in text.split()) for text in splits.categories]
    common = np.full(len(given["group"].cat.categories), -1, np.int8)
    np.bitwise_and.at(common, group, np.array(allowed, np.int8)[splits.codes])
    found: pd.DataFrame = given[common[group] == 0]
    return found


def _describe_torn(torn: pd.DataFrame, who: str) -> str:
    if torn.empty:
        return ""
    groups = torn["group"].astype("str").to_numpy()
    names = sorted(set(groups))
    first = [text.split()[0] for text in torn["splits"].cat.categories]
    split = np.array(first, object)[torn["splits"].cat.codes]
    listed = [f"{name} ({_counts(Counter(split[groups == name]))})" for name in names[:MAX_LISTED]]
    more = ", ..." if len(names) > len(listed) else ""
    return (
        f"a leak: {who} {counted(len(names), 'group')}, {', '.join(listed)}{more}; each goes as a whole to the split "
        "of most of its images, or to the one that it already has"
    )


def _joined(table: pd.DataFrame) -> str:
    """Describe named groups that near duplicates join."""
    named = table.loc[table["name"].notna(), ["group", "name"]]
    if named.empty:
        return ""
    count = named.groupby("group")["name"].nunique()
    if (count := count[count > 1]).empty:
        return ""
    largest = named.loc[named["group"] == count.idxmax(), "name"]
    first, second = sorted(largest.unique())[:2]
    return (
        f"Near duplicates join {count.sum():,} named groups into {len(count):,}, e.g. {first} and {second}; the "
        f"largest has {count.max():,} names and {len(largest):,} of {len(table):,} images. Blank images in common? "
        "Remove those."
    )


def _divided(table: pd.DataFrame, first_path: Callable[["pd.Series[int]"], str]) -> str:
    """Describe groups in several splits."""
    group, split = table["group"].to_numpy(), table["split"].cat.codes.to_numpy()
    lowest, highest = np.full(group.max() + 1, len(SPLITS), np.int8), np.full(group.max() + 1, -1, np.int8)
    np.minimum.at(lowest, group, split)
    np.maximum.at(highest, group, split)
    divided = table[(lowest != highest)[group]]
    if divided.empty:
        return ""
    _, example = next(iter(divided.groupby("group")))
    names = example["name"].dropna().astype("str")
    name = names.min() if len(names) else first_path(example["image"])
    return (
        f"{counted(divided['group'].nunique(), 'group')} ({len(divided):,} images) in several splits, "
        f"e.g. that of {name} ({_counts(Counter(example['split']))}): the splits are older than the groups, and "
        "permanent. To keep groups whole, remove data/dataset: the next run draws new splits (what came through the "
        "inbox has to be delivered again)."
    )


def _few(table: pd.DataFrame) -> str:
    """Describe classes whose images are in fewer groups than there are splits."""
    rows = tables.one_row_per_label(table[["label", "class_index", "group"]])
    (codes, labels), group = _codes(rows["label"]), rows["group"].to_numpy()
    sizes = np.zeros(group.max(initial=0) + 1, np.int32)
    np.add.at(sizes, group, 1)
    is_shared = (sizes > 1)[group]
    pairs = np.unique(np.stack([codes[is_shared], group[is_shared]], axis=1), axis=0)  # each class of a group once
    alone, shared = (np.bincount(found, minlength=len(labels)) for found in (codes[~is_shared], pairs[:, 0]))
    counts = zip(labels, (alone + shared).tolist(), strict=True)
    few = sorted((label, n) for label, n in counts if 0 < n < MIN_GROUPS_PER_CLASS)
    listed = [f"{label!r} is in {counted(number, 'group')}" for label, number in few]
    named = ", ".join(listed[:MAX_LISTED]) + (", ..." if len(few) > MAX_LISTED else "")
    needed = f"a class needs {MIN_GROUPS_PER_CLASS}, one each for train, val and test; a group is in one split."
    return f"{named}: {needed}" if named else ""


def _counts(splits: Counter[str]) -> str:
    return ", ".join(f"{splits[split]} {split}" for split in SPLITS if splits[split])

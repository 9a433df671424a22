"""Describe what became of the groups: how close to the shares their splits are, and which could not be kept apart."""

from collections import Counter
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from rootstock.config import params
from rootstock.dataset import image_ids, tables
from rootstock.images.perceptual_hash import HASH_BITS
from rootstock.ingest.layout import SPLITS

MIN_GROUPS_PER_CLASS = 3  # one each for train, val and test
MAX_LISTED = 3  # classes or groups that a note lists
MAX_SPREAD = 3  # times ingest.near_duplicate_bits, in a group of images that are all alike
FEW_IMAGES, FAR_OFF = 100, 0.05  # shares of fewer images, or that differ less, are worth no warning
MIN_CHAIN, MIN_CHAIN_SHARE = 100, 0.1  # images of a group, and share of all, that a note is worth


def summarize(manifest: pd.DataFrame, names: "pd.Series[Any]", notes: list[str]) -> dict[str, Any]:
    """Return the part of the summary about named groups; empty if there are none.

    Args:
        manifest: images in use.
        names: the group name of each, null for none.
        notes: as returned by `describe`.
    """
    named = names[names.notna()]
    if named.empty:
        return {}
    return {"groups": {"named": int(named.nunique()), "images": len(named), "notes": notes}}


def describe(manifest: pd.DataFrame, names: "pd.Series[Any]") -> list[str]:
    """Describe what a person should know of the groups: joined ones, divided ones, and classes with too few."""
    table = manifest.assign(name=names.to_numpy(object))
    return [note for note in (_joined(table), _divided(table), _few(table)) if note]


def describe_chain(near: "pd.Series[int]", ledger: pd.DataFrame, bits: int) -> str:
    """Describe a large group of images that are near duplicates of each other only by way of others; "" if none is.

    Args:
        near: the number of each image's group by near duplicates, by image id.
        ledger: all images, with their hashes.
        bits: ingest.near_duplicate_bits.
    """
    counts = near.value_counts()
    if counts.empty or counts.iloc[0] < max(MIN_CHAIN, MIN_CHAIN_SHARE * len(near)):
        return ""
    members = near.index[near == counts.index[0]]
    hashes = ledger.set_index("image_id")["phash"].reindex(members).to_numpy(np.uint64)
    spread = int(np.bitwise_count(hashes ^ hashes[0]).max())
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
    counts = (
        tables.one_row_per_label(drawn)
        .groupby(["label", "split"])
        .size()
        .unstack(fill_value=0)
        .reindex(columns=SPLITS, fill_value=0)
    )
    off = 100 * counts.div(counts.sum(axis=1), axis=0).sub(_shares(wanted)).abs()
    return (
        f"splits {_percent(_reached(drawn))} % of {len(drawn):,} images, in "
        f"{_enumerated(drawn['group_id'].nunique(), 'group')}; largest deviation of a class from its share: "
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
    is_open = files["splits"].map(lambda splits: splits == SPLITS).to_numpy(bool)
    if is_open.all():
        return manifest
    return manifest[image_ids.is_in(manifest["image_id"], pd.Index(files.loc[is_open, "image_id"].dropna()).unique())]


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
    is_given = files["splits"].map(lambda splits: splits != SPLITS).to_numpy(bool)
    given = files[is_given & (files["group"].fillna("") != "").to_numpy(bool)]
    torn = {
        str(name): Counter(allowed[0] for allowed in splits)
        for name, splits in given.groupby("group")["splits"]
        if not set.intersection(*map(set, splits))
    }
    if not torn:
        return ""
    listed = [f"{name} ({_counts(counts)})" for name, counts in list(torn.items())[:MAX_LISTED]]
    return (
        f"a leak: its own splits share {_enumerated(len(torn), 'group')}, {', '.join(listed)}"
        f"{', ...' if len(torn) > len(listed) else ''}; each goes as a whole to the split of most of its images"
    )


def _joined(table: pd.DataFrame) -> str:
    """Describe named groups that near duplicates join."""
    named = table[table["name"].notna()]
    count = named.groupby("group_id")["name"].nunique()
    if (count := count[count > 1]).empty:
        return ""
    largest = named.loc[named["group_id"] == count.idxmax(), "name"]
    first, second = sorted(largest.unique())[:2]
    return (
        f"Near duplicates join {count.sum():,} named groups into {len(count):,}, e.g. {first} and {second}; the "
        f"largest has {count.max():,} names and {len(largest):,} of {len(table):,} images. Blank images in common? "
        "Remove those."
    )


def _divided(table: pd.DataFrame) -> str:
    """Describe groups in several splits."""
    count = table.groupby("group_id")["split"].nunique()
    divided = table[table["group_id"].isin(count.index[count > 1])]
    if divided.empty:
        return ""
    _, example = next(iter(divided.groupby("group_id")))
    name = example["name"].dropna().min() if example["name"].notna().any() else example["path"].min()
    return (
        f"{_enumerated(divided['group_id'].nunique(), 'group')} ({len(divided):,} images) in several splits, "
        f"e.g. that of {name} ({_counts(Counter(example['split']))}): the splits are older than the groups, and "
        "permanent. To keep groups whole, remove data/dataset: the next run draws new splits (what came through the "
        "inbox has to be delivered again)."
    )


def _few(table: pd.DataFrame) -> str:
    """Describe classes whose images are in fewer groups than there are splits."""
    count = tables.one_row_per_label(table).groupby("label")["group_id"].nunique()
    few = count[count < MIN_GROUPS_PER_CLASS].sort_index()
    listed = [f"{label!r} is in {_enumerated(int(number), 'group')}" for label, number in few.items()]
    named = ", ".join(listed[:MAX_LISTED]) + (", ..." if len(few) > MAX_LISTED else "")
    needed = f"a class needs {MIN_GROUPS_PER_CLASS}, one each for train, val and test; a group is in one split."
    return f"{named}: {needed}" if named else ""


def _counts(splits: Counter[str]) -> str:
    return ", ".join(f"{splits[split]} {split}" for split in SPLITS if splits[split])


def _enumerated(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"

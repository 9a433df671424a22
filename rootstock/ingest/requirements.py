"""What a data set has to be to be trained on, and what may not change in it unless a person says so."""

import logging
from collections import Counter

import pandas as pd

from rootstock.config import params
from rootstock.dataset.tables import Dataset
from rootstock.images.inspection import Reason
from rootstock.ingest import labels, manifests
from rootstock.ingest.folder_tree import FEW
from rootstock.ingest.labels import look
from rootstock.ingest.layout import SPLITS
from rootstock.ingest.sources import SourceListing
from rootstock.system.errors import SourceError

log = logging.getLogger(__name__)

MIN_IMAGES_A_CLASS = 3  # one each to train on, to choose by, to test on
RELABELLED = 5  # so many known images with another label, and more than a few of all, are no correction
SHOWN = 5  # classes, or pairs of them, that an error names


def check_shrink(settings: params.Ingest, listed: list[SourceListing], before: Dataset, files: pd.DataFrame) -> None:
    """Stop where a source lost more than half of its images, unless that is meant.

    Raises:
        SourceError: one did.
    """
    then = before.manifest["source"].value_counts()
    now = files.loc[files["reason"].isna(), "source"].value_counts()
    for entry in listed:
        had, has = int(then.get(entry.spec.title(), 0)), int(now.get(entry.spec.title(), 0))
        if has * 2 < had and not settings.allow_shrink:
            raise SourceError(
                f"ingest.sources: {entry.spec.path} held {had} images and now holds {has}. If that is meant, "
                "set ingest.allow_shrink to true; the data set was left as it is."
            )


def check_relabelled(
    settings: params.Ingest, listed: list[SourceListing], before: Dataset, files: pd.DataFrame
) -> None:
    """Stop where many known images would get another label, unless that is meant.

    In folders, labels change when a folder does, which may be an oversight: a tenth of the images, or a whole class, is
    many. Rows of a table are corrected on purpose: more than half is many. What the inbox brings has to prove itself
    against the champion, and a layout that a person has changed is meant to change labels.

    Raises:
        SourceError: many would.
    """
    good = files[files["reason"].isna()]
    now = set(zip(good["image_id"], good["label"].map(look), strict=True))
    there = set(good["image_id"])
    kept = {source["name"]: source.get("layout", {}) for source in before.summary.get("sources", [])}
    for entry in listed:
        title = entry.spec.title()
        old = before.manifest[(before.manifest["source"] == title) & before.manifest["image_id"].isin(there)]
        if entry.source is None or entry.stays or old.empty:
            continue
        changed = old[[key not in now for key in zip(old["image_id"], old["label"].map(look), strict=True)]]
        if changed.empty:
            continue
        said = f"{len(changed)} of {len(old)} known images get another label ({_changes(changed, good)})"
        is_meant = entry.source.layout.get("given") != kept.get(title, {}).get("given")
        is_table = entry.source.layout.get("layout") == manifests.TABLE
        if not (settings.allow_relabel or is_meant) and _are_many(old, changed, is_table=is_table):
            how = "which folders are classes is said by ingest.sources[].layout, classes_at and splits. "
            raise SourceError(
                f"ingest.sources: {entry.spec.path}: {said}. If that is meant, set ingest.allow_relabel to true; "
                f"{'' if is_table else how}the data set was left as it is."
            )
        log.info("%s: %s", title, said)


def _are_many(old: pd.DataFrame, changed: pd.DataFrame, *, is_table: bool) -> bool:
    if is_table:
        return len(changed) * 2 > len(old)
    whole = old["label"].value_counts()
    gone = changed["label"].value_counts().reindex(whole.index, fill_value=0)
    renamed = bool(((gone == whole) & (whole >= MIN_IMAGES_A_CLASS)).any())
    return renamed or (len(changed) >= RELABELLED and len(changed) > FEW * len(old))


def _changes(changed: pd.DataFrame, good: pd.DataFrame) -> str:
    """Say which labels become which, and of what file."""
    new = good.drop_duplicates("image_id").set_index("image_id")
    pairs = Counter(zip(changed["label"], new.loc[changed["image_id"], "label"], strict=True))
    named = ", ".join(f"{old} -> {label}: {count}" for (old, label), count in pairs.most_common(SHOWN))
    more = ", ..." if len(pairs) > SHOWN else ""
    return f"{named}{more}; e.g. {new.loc[changed['image_id'].iloc[0], 'path']}"


def check_labels(files: pd.DataFrame) -> None:
    """Stop where two labels are one class spelt in two ways, or one is by its name a copy of another.

    Args:
        files: of all sources, those of before among them.

    Raises:
        SourceError: two are.
    """
    firsts = files[files["label"] != ""].drop_duplicates("label")
    places = firsts["source"] + ": " + firsts["path"]
    where: dict[str, str] = dict(zip(firsts["label"], places, strict=True))
    labels.check_alike(where)
    for original, copy in labels.copies(where):
        both = files[(files["label"] == copy) & (files["reason"] == Reason.CONFLICTING_LABEL.value)]
        same = f"; {len(both)} of its images are under two labels (conflicting_label)" if len(both) else ""
        raise SourceError(
            f"The class {copy!r} ({where[copy]}) is by its name a copy of {original!r} ({where[original]}){same}. "
            "Remove the copy, or give the class a name of its own."
        )


def check_enough(manifest: pd.DataFrame, files: pd.DataFrame, listed: list[SourceListing]) -> None:
    """Stop where there is too little to train on, to choose by or to test on.

    Raises:
        SourceError: there is.
    """
    if manifest.empty:
        unlabelled = bool((files["reason"] == Reason.NO_LABEL.value).any())
        expected = " Expected a sub-folder for each class, or a label for each image of a table." if unlabelled else ""
        why = f" ({_why(files)})" if len(files) else ""
        raise SourceError(f"ingest.sources: no usable image in {len(files)} files{why}.{expected}")
    counts = _counts(manifest, files, listed)
    if few := {label: count for label, count in counts.items() if count < MIN_IMAGES_A_CLASS}:
        said = [_say_class(label, count, files) for label, count in sorted(few.items())]
        raise SourceError(
            f"ingest.sources: {'; '.join(said[:SHOWN])}{'; ...' if len(said) > SHOWN else ''}. A class needs at least "
            f"{MIN_IMAGES_A_CLASS} usable images, one each to train on, to choose by and to test on. Add images, or "
            "leave the class out: take its folder, or its rows, away."
        )
    if len(counts) == 1:
        [(label, count)] = counts.items()
        raise SourceError(
            f"ingest.sources: a single class, {label!r} ({count} images{_and_not(files)}); a classifier needs two. "
            "Expected a sub-folder for each class, or a label for each image of a table."
        )
    if untaught := sorted(set(counts) - set(manifest.loc[manifest["split"] == "train", "label"])):
        raise SourceError(
            f"ingest.sources: no image of {', '.join(map(repr, untaught))} is in the train split: the folders say so, "
            "or near duplicates are held out. Add images to train on or leave the class out."
        )
    if empty := [split for split in SPLITS if not (manifest["split"] == split).any()]:
        raise SourceError(
            f"ingest.sources: no image is in the {empty[0]} split: there are too few that are not duplicates, or near "
            f"duplicates, of each other ({len(manifest)} images{_and_not(files)}). Add images, or lower "
            "ingest.near_duplicate_bits."
        )


def _counts(manifest: pd.DataFrame, files: pd.DataFrame, listed: list[SourceListing]) -> dict[str, int]:
    """Count the usable images of every class that a source offers now, also where there are none."""
    offering = [entry for entry in listed if entry.source is not None]
    offered = files.loc[files["source"].isin([entry.spec.title() for entry in offering]), "label"].unique()
    empty = {label for entry in offering if entry.source for label in entry.source.empty}
    found = manifest["label"].value_counts()
    return dict.fromkeys(sorted({*offered, *empty} - {""}), 0) | {str(label): int(n) for label, n in found.items()}


def _say_class(label: str, count: int, files: pd.DataFrame) -> str:
    mine = files[files["label"] == label]
    why = _why(mine) + _also_at(mine, files) or ("" if len(mine) else "its folder is empty, or a link to nowhere")
    return f"{label!r} has {count}{f' ({why})' if why else ''}"


def _also_at(mine: pd.DataFrame, files: pd.DataFrame) -> str:
    """Say where an image of a class is found under another label, too."""
    twice = mine[mine["reason"] == Reason.CONFLICTING_LABEL.value].head(1)
    others = files[files["image_id"].isin(twice["image_id"]) & ~files["label"].isin(twice["label"])]
    return f", which is {others['path'].iloc[0]}, too" if len(others) else ""


def _and_not(files: pd.DataFrame) -> str:
    """Say what else there is, and why it does not count."""
    why = _why(files)
    return f"; rejected: {why}" if why else ""


def _why(files: pd.DataFrame) -> str:
    """Count the reasons why files were turned away, each with one of them."""
    turned_away = files[files["reason"].notna()]
    firsts = turned_away.drop_duplicates("reason").set_index("reason")["path"]
    counted = Counter(turned_away["reason"]).most_common()
    return ", ".join(f"{count} {reason}, e.g. {firsts[reason]}" for reason, count in counted)

"""Check that a dataset can be trained on, and that it did not shrink or change labels unexpectedly."""

import logging
from collections import Counter

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from rootstock.config import params
from rootstock.dataset import label_sets, tables
from rootstock.images.inspection import Reason
from rootstock.ingest import group_notes, labels, manifests, opening
from rootstock.ingest.earlier import Earlier
from rootstock.ingest.folder_tree import NEGLIGIBLE_SHARE
from rootstock.ingest.labels import lookalike_key
from rootstock.ingest.layout import SPLITS
from rootstock.ingest.sources import SourceListing
from rootstock.system import phrases
from rootstock.system.errors import SourceError

log = logging.getLogger(__name__)

MIN_IMAGES_PER_CLASS = 3  # one each for train, val and test
MIN_RELABELLED = 5  # this many relabelled images, if also more than a negligible share, stop the run
MAX_LISTED = 5  # classes, or pairs of classes, that an error lists
EXPECTED = "Expected one subfolder per class, or a table with one label per image."


def check_shrink(settings: params.Ingest, listed: list[SourceListing], before: Earlier, files: pd.DataFrame) -> None:
    """Check that no source lost more than half of its images, unless allowed.

    Raises:
        SourceError: one did.
    """
    then = before.manifest["source"].value_counts()
    now = files.loc[files["reason"].isna(), "source"].value_counts()
    for entry in listed:
        had, has = int(then.get(entry.spec.title(), 0)), int(now.get(entry.spec.title(), 0))
        if has * 2 < had and not settings.allow_shrink:
            raise SourceError(
                f"ingest.sources: {entry.spec.path} had {had:,} images and now has {has:,}. If this is intended, "
                "set ingest.allow_shrink to true; the dataset is unchanged."
            )


def check_relabelled(
    settings: params.Ingest, listed: list[SourceListing], before: Earlier, files: pd.DataFrame
) -> None:
    """Check that not too many known images would change their label, unless allowed.

    In folders, labels change when a folder is renamed or moved, possibly by mistake: the limit is a tenth of the
    images, or a whole class. Rows of a table are corrected on purpose: the limit is half of them. Inbox deliveries are
    exempt, since they are judged against the champion, and so are sources whose layout parameters changed.

    Raises:
        SourceError: too many would change.
    """
    if before.manifest.empty:
        return
    all_labels = [*files["label"].cat.categories, *before.manifest["label"].cat.categories]
    keys = {label: lookalike_key(label) for label in all_labels}
    number = {key: place for place, key in enumerate(dict.fromkeys(keys.values()))}
    of_label = {label: number[key] for label, key in keys.items()}
    good = files["reason"].isna().to_numpy()
    there = files["image"].to_numpy()[good]
    now = _labelled(there, files["label"].array[good], of_label)
    now.sort()
    kept = {source["name"]: source.get("layout", {}) for source in before.summary.get("sources", [])}
    for entry in listed:
        title = entry.spec.title()
        if entry.source is None or entry.stays:
            continue
        old = before.manifest.loc[before.manifest["source"] == title, ["image", "label"]]
        old = old[np.isin(old["image"], there, kind="table")]
        then = _labelled(old["image"].to_numpy(), old["label"].array, of_label)
        changed = old[np.append(now, -1)[np.searchsorted(now, then)] != then]
        if changed.empty:
            continue
        how_many = f"{len(changed):,} of {len(old):,}"
        labels = f"their label ({_describe_changes(changed, files[good])})"
        is_meant = entry.source.layout.get("given") != kept.get(title, {}).get("given")
        is_table = entry.source.layout.get("layout") == manifests.TABLE
        if not (settings.allow_relabel or is_meant) and _are_many(old, changed, is_table=is_table):
            how = " ingest.sources[].layout, classes_at and splits define which folders are classes."
            raise SourceError(
                f"ingest.sources: {entry.spec.path}: {how_many} known images would change {labels}. The dataset is "
                f"unchanged. If this is intended, set ingest.allow_relabel to true.{'' if is_table else how}"
            )
        log.info("%s: %s known images change %s", title, how_many, labels)


def _labelled(images: NDArray[np.int32], labels: pd.Categorical, of_label: dict[str, int]) -> NDArray[np.int64]:
    """Return one number for the image and the label of each file (n,), the same where a label only looks different.

    Args:
        images: their numbers (n,).
        labels: (n,).
        of_label: the number of each label.
    """
    numbers = np.array([of_label[label] for label in labels.categories], np.int64)
    found = images.astype(np.int64)
    found *= len(of_label)
    found += numbers[labels.codes]
    return found


def _are_many(old: pd.DataFrame, changed: pd.DataFrame, *, is_table: bool) -> bool:
    if is_table:
        return len(changed) * 2 > len(old)
    totals = old["label"].value_counts()
    totals = totals[totals > 0]  # of categories, all are counted
    gone = changed["label"].value_counts().reindex(totals.index, fill_value=0)
    renamed = bool(((gone == totals) & (totals >= MIN_IMAGES_PER_CLASS)).any())
    return renamed or (len(changed) >= MIN_RELABELLED and len(changed) > NEGLIGIBLE_SHARE * len(old))


def _describe_changes(changed: pd.DataFrame, good: pd.DataFrame) -> str:
    """Describe which labels change to which, with an example file."""
    new = good[np.isin(good["image"], changed["image"], kind="table")].drop_duplicates("image").set_index("image")
    pairs = Counter(zip(changed["label"], new.loc[changed["image"], "label"], strict=True))
    named = ", ".join(f"{old} -> {label}: {count:,}" for (old, label), count in pairs.most_common(MAX_LISTED))
    more = ", ..." if len(pairs) > MAX_LISTED else ""
    return f"{named}{more}; e.g. {new.loc[changed['image'].iloc[0], 'path']}"


def check_labels(files: pd.DataFrame) -> None:
    """Check that no two labels are spellings of the same class, and none is a copy of another by name.

    Args:
        files: the files of all sources, including earlier ones.

    Raises:
        SourceError: two labels are.
    """
    firsts = files[~files["label"].duplicated()].astype({"source": "str", "label": "str"})
    firsts = firsts[firsts["label"] != ""]
    places = firsts["source"] + ": " + firsts["path"]
    where: dict[str, str] = dict(zip(firsts["label"], places, strict=True))
    labels.check_lookalikes(where)
    for original, copy in labels.copies(where):
        both = files[(files["label"] == copy) & (files["reason"] == Reason.CONFLICTING_LABEL.value)]
        same = f"; {len(both):,} of its images have both labels (conflicting_label)" if len(both) else ""
        raise SourceError(
            f"The class {copy!r} ({where[copy]}) looks like a copy of {original!r} ({where[original]}){same}. "
            "Remove the copy, or rename the class."
        )


def check_enough(manifest: pd.DataFrame, files: pd.DataFrame, listed: list[SourceListing]) -> None:
    """Check that there are enough images and classes for train, val and test.

    Raises:
        SourceError: there are not.
    """
    if manifest.empty:
        unlabelled = bool((files["reason"] == Reason.NO_LABEL.value).any())
        expected = f" {EXPECTED}{_suggest_table(files, listed)}" if unlabelled else ""
        why = f" ({_describe_reasons(files)})" if len(files) else ""
        raise SourceError(f"ingest.sources: no usable image in {len(files):,} files{why}.{expected}")
    multi_label, of_classes = tables.is_multi_label(manifest), tables.one_row_per_label(manifest)
    files_of_classes = label_sets.one_row_per_label(files) if multi_label else files
    counts = _counts(of_classes, files_of_classes, listed)
    if few := {label: count for label, count in counts.items() if count < MIN_IMAGES_PER_CLASS}:
        said = [_describe_class(label, count, files_of_classes) for label, count in sorted(few.items())]
        raise SourceError(
            f"ingest.sources: {'; '.join(said[:MAX_LISTED])}{'; ...' if len(said) > MAX_LISTED else ''}. "
            f"A class needs at least {MIN_IMAGES_PER_CLASS} usable images, one each for train, val and test. "
            "Add images, or exclude the class: remove its folder, or its rows."
        )
    if len(counts) == 1 and not multi_label:
        [(label, count)] = counts.items()
        raise SourceError(
            f"ingest.sources: only one class, {label!r} ({count:,} images{_describe_rejected(files)}); "
            f"a classifier needs two. {EXPECTED}{_suggest_table(files, listed)}"
        )
    if untaught := sorted(set(counts) - set(of_classes["label"][of_classes["split"] == "train"].unique())):
        raise SourceError(
            f"ingest.sources: no image of {', '.join(map(repr, untaught))} is in the train split: "
            "the source puts them elsewhere, or they are near duplicates of held-out images or in a group with them. "
            "Add images to train on, or exclude the class."
        )
    if empty := [split for split in SPLITS if not (manifest["split"] == split).any()]:
        groups = phrases.counted(manifest["group"].nunique(), "group")
        counted = f"{len(manifest):,} images in {groups}{_describe_rejected(files)}"
        if leaks := _describe_leaks(files, listed):
            raise SourceError(
                f"ingest.sources: the {empty[0]} split has no images ({counted}). {leaks}. Have each group in one "
                "split, or give no splits: then they are drawn, of whole groups."
            )
        raise SourceError(
            f"ingest.sources: the {empty[0]} split has no images: too few are distinct, the others are duplicates, "
            f"near duplicates or in the same group ({counted}). Add images of other groups, or lower "
            "ingest.near_duplicate_bits."
        )


def _suggest_table(files: pd.DataFrame, listed: list[SourceListing]) -> str:
    """Suggest a table that lies in the folder of a source, where the source was to be the table."""
    for spec in (entry.spec for entry in listed if not entry.spec.path.lower().endswith(opening.ARCHIVES)):
        ignored = files[(files["source"] == spec.title()) & (files["reason"] == Reason.NOT_AN_IMAGE.value)]
        for path in sorted(path for path in ignored["path"] if path.lower().endswith(opening.TABLES)):
            return f" If {path} is such a table, name it as the source: path: {spec.path.rstrip('/')}/{path}."
    return ""


def _counts(manifest: pd.DataFrame, files: pd.DataFrame, listed: list[SourceListing]) -> dict[str, int]:
    """Count the usable images of every class that the sources offer now, including classes with none."""
    offering = [entry for entry in listed if entry.source is not None]
    offered = files.loc[files["source"].isin([entry.spec.title() for entry in offering]), "label"].unique()
    empty = {label for entry in offering if entry.source for label in entry.source.empty}
    found = manifest["label"].value_counts()
    counted = {str(label): int(n) for label, n in found.items() if n}  # of categories, all are counted
    return dict.fromkeys(sorted({*offered, *empty} - {""}), 0) | counted


def _describe_class(label: str, count: int, files: pd.DataFrame) -> str:
    mine = files[files["label"] == label]
    why = _describe_reasons(mine) + _describe_other_label(mine, files) or (
        "" if len(mine) else "its folder is empty, or a broken link"
    )
    return f"{label!r} has {count:,}{f' ({why})' if why else ''}"


def _describe_other_label(mine: pd.DataFrame, files: pd.DataFrame) -> str:
    """Describe where an image of a class also has another label."""
    twice = mine[mine["reason"] == Reason.CONFLICTING_LABEL.value].head(1)
    others = files[files["image"].isin(twice["image"]) & ~files["label"].isin(twice["label"])]
    return f", which is also {others['path'].iloc[0]}" if len(others) else ""


def _describe_leaks(files: pd.DataFrame, listed: list[SourceListing]) -> str:
    """Describe the named groups that sources have in several splits, source by source."""
    usable = files[files["reason"].isna()]
    titles = [entry.spec.title() for entry in listed]
    leaks = {title: group_notes.describe_leaks(usable[usable["source"] == title]) for title in titles}
    found = [f"{title}: {leak}" for title, leak in leaks.items() if leak]
    return ". ".join([*found, *filter(None, [group_notes.describe_leaks_between(usable)])])


def _describe_rejected(files: pd.DataFrame) -> str:
    """Describe the rejected files."""
    why = _describe_reasons(files)
    return f"; rejected: {why}" if why else ""


def _describe_reasons(files: pd.DataFrame) -> str:
    """Describe the reasons for rejection: count and an example each."""
    turned_away = files[files["reason"].notna()]
    firsts = turned_away.drop_duplicates("reason").set_index("reason")["path"]
    counted = Counter(turned_away["reason"]).most_common()
    return ", ".join(f"{count:,} {reason}, e.g. {firsts[reason]}" for reason, count in counted)

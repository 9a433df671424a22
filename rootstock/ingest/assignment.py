"""Assign splits, group names and group ids to the images of the ledger."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from rootstock.config import params
from rootstock.dataset import image_ids, label_sets
from rootstock.ingest import groups
from rootstock.ingest.drawing import Candidate, Stratum
from rootstock.ingest.layout import SPLITS
from rootstock.ingest.near_duplicates import KnownLinks, Links, near_links
from rootstock.ingest.splits import assign_splits

NO_LABELS = ""  # what images of none of the classes are stratified by


@dataclass(frozen=True)
class Assignment:
    """The ledger with split, group name and group id of each image.

    `near` is the number of each image's group by near duplicates alone, `known` what the next assignment need not
    compare again; `drawn` counts the images that have a split now, and had none before.
    """

    ledger: pd.DataFrame
    near: "pd.Series[int]"  # by image id
    drawn: int
    known: KnownLinks


def assign(
    ledger: pd.DataFrame, files: pd.DataFrame, settings: params.Ingest, seed: int, known: KnownLinks | None = None,
    *, multi_label: bool = False,
) -> Assignment:  # fmt: skip
    """Assign a split to images of the manifest that have none, and update group names and ids of all.

    A group is what near duplicates and group names connect (groups.py). Group ids follow from the present names and
    hashes; splits never change.

    Args:
        ledger: all images ever packed.
        files: the files of all sources; those without a reason become the manifest.
        settings: the section `ingest` of params.yaml.
        seed: random seed of the split.
        known: as an earlier assignment left it.
        multi_label: whether a label is a set of them (label_sets.py), each of which is stratified by.
    """
    ledger = _with_names(ledger, files)
    accepted = files.loc[files["reason"].isna(), ["image_id", "domain", "label", "splits"]]
    has_split = ledger["split"].notna()
    new = ~has_split & image_ids.is_in(ledger["image_id"], accepted["image_id"])
    rows = ledger[["image_id", "phash", "split", "batch"]]
    rows = pd.concat([rows[has_split], rows[new]])
    near, known = near_links(rows["phash"].to_numpy(np.uint64), settings.near_duplicate_bits, known)
    named = groups.links_by_name(rows, _named(ledger, files))
    if new.any():
        rows["split"] = _splits(rows, accepted, near, named, settings, seed, multi_label=multi_label)
        ledger.loc[rows.index, "split"] = rows["split"]
    rows, near, named = _placed(rows, near, named)
    ledger.loc[rows.index, "group_id"] = groups.group_ids(rows, np.concatenate([near, named]))
    alike = pd.Series(groups.components(len(rows), near), index=rows["image_id"])
    return Assignment(ledger, alike, len(rows) - int(has_split.sum()), known)


def _placed(rows: pd.DataFrame, near: Links, named: Links) -> tuple[pd.DataFrame, Links, Links]:
    """Return the images that have a split, and the links between them."""
    is_placed = rows["split"].notna().to_numpy()
    number = np.cumsum(is_placed) - 1
    near, named = (number[links[is_placed[links].all(axis=1)]] for links in (near, named))
    return rows[is_placed], near, named


def _with_names(ledger: pd.DataFrame, files: pd.DataFrame) -> pd.DataFrame:
    """Return the ledger with the group names of the files that are listed now; other images keep theirs.

    Of copies of an image, the one in the manifest names its group, or else the first that has a name.
    """
    listed = files[files["image_id"].notna() & files["group"].notna()]
    if ledger["group"].isna().all() and (listed["group"] == "").all():
        return ledger.copy(deep=False)
    order = pd.DataFrame({"unnamed": listed["group"] == "", "copy": listed["reason"].notna()})
    names = listed.loc[order.sort_values(["unnamed", "copy"], kind="stable").index].drop_duplicates("image_id")
    found = ledger["image_id"].map(names.set_index("image_id")["group"])
    group = found.where(found.notna(), ledger["group"]).astype(object)
    return ledger.assign(group=group.where(group.notna() & (group != ""), None))


def _named(ledger: pd.DataFrame, files: pd.DataFrame) -> pd.DataFrame:
    """Return image ids and group names; an image whose copies are in several groups is in all of them."""
    parts = (
        table.loc[table["group"].notna() & (table["group"] != ""), ["image_id", "group"]] for table in (ledger, files)
    )
    both = pd.concat(parts)
    return both[both["image_id"].notna()].drop_duplicates()


def _splits(
    rows: pd.DataFrame, accepted: pd.DataFrame, near: Links, named: Links, settings: params.Ingest, seed: int,
    *, multi_label: bool,
) -> NDArray[np.object_]:  # fmt: skip
    """Return the split of each row, (n,); None for a new image that cannot be assigned.

    Only groups with a new image are looked at one by one; of the images of all others, the splits' counts matter.
    """
    place = image_ids.places(rows["image_id"], accepted["image_id"])
    facts = accepted.reset_index(drop=True).reindex(place).reset_index(drop=True)  # empty where it is -1
    splits = rows["split"].to_numpy(object, copy=True)
    component = groups.components(len(rows), np.concatenate([near, named]))
    is_open = np.isin(component, component[pd.isna(splits)])
    counts = facts[~is_open].groupby(["domain", "label", splits[~is_open]]).size()  # but for images not listed now

    def stratum_of(domain: str, label: object) -> Stratum | None:
        if not isinstance(label, str):  # images whose file is unreachable are not listed
            return None
        return domain, *(label_sets.split(label) or [NO_LABELS] if multi_label else [label])

    settled = {
        (stratum, split): n
        for (domain, label, split), n in zip(counts.index, counts.tolist(), strict=True)
        if (stratum := stratum_of(domain, label))
    }
    candidates = [
        Candidate(
            name,
            stratum_of(domain, label),
            allowed if isinstance(allowed, tuple) else SPLITS,
            split if isinstance(split, str) else None,
        )
        for name, split, domain, label, allowed in zip(
            rows["image_id"][is_open],
            splits[is_open],
            *(facts[name][is_open] for name in ("domain", "label", "splits")),
            strict=True,
        )
    ]
    number = np.cumsum(is_open) - 1
    near, named = (number[links[is_open[links[:, 0]]]] for links in (near, named))
    shares = {"val": settings.split.val, "test": settings.split.test}
    shares["train"] = 1 - sum(shares.values())
    assign_splits(candidates, near, named, shares, seed, settled)
    splits[is_open] = [candidate.split for candidate in candidates]
    return splits

"""Assign splits, group names and groups to the images of the ledger."""

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from rootstock.config import params
from rootstock.dataset import image_ids, label_sets
from rootstock.ingest import groups
from rootstock.ingest.drawing import Candidate, Singles, Stratum
from rootstock.ingest.layout import SPLITS
from rootstock.ingest.ledger import NONE, Ledger
from rootstock.ingest.near_duplicates import KnownLinks, Links, near_links
from rootstock.ingest.splits import assign_splits

NO_LABELS = ""  # what images of none of the classes are stratified by
Rows = NDArray[np.int32]


@dataclass(frozen=True)
class Assignment:
    """The ledger with split and group name of each image, and the groups.

    `first` is the number of the first image of each image's group, (n,) int32, NONE where an image has no split;
    `placed` are the m images that have one, `near` the number of the group of each by near duplicates alone, (m,)
    int32; `drawn` counts the images that have a split now, and had none before.
    """

    ledger: Ledger
    first: NDArray[np.int32]
    placed: Rows
    near: NDArray[np.int32]
    drawn: int


def assign(
    ledger: Ledger, files: pd.DataFrame, settings: params.Ingest, seed: int, known: KnownLinks | None = None,
    *, multi_label: bool = False,
) -> tuple[Assignment, KnownLinks]:  # fmt: skip
    """Assign a split to images of the manifest that have none, and update group names of all.

    A group is what near duplicates and group names connect (groups.py). Groups follow from the present names and
    hashes; splits never change.

    Args:
        ledger: all images ever packed.
        files: the files of all sources; those without a reason become the manifest.
        settings: the section `ingest` of params.yaml.
        seed: random seed of the split.
        known: as an earlier assignment left it.
        multi_label: whether a label is a set of them (label_sets.py), each of which is stratified by.

    Returns:
        The assignment, and what the next one need not compare again.
    """
    file_of = files_of_images(files, len(ledger))
    group, names = _with_names(ledger, files)
    has_split = ledger.split != NONE
    new = ~has_split & (file_of != NONE)
    rows = np.concatenate([np.flatnonzero(has_split), np.flatnonzero(new)]).astype(np.int32)
    near, known = near_links(ledger.phash[rows], settings.near_duplicate_bits, known)
    named = _links_by_name(rows, group, names, ledger, files)
    split = ledger.split.copy()
    if new.any():
        facts = _Facts(files, file_of[rows], multi_label=multi_label)
        del file_of, new
        split[rows] = _splits(ledger.ids, rows, split[rows], facts, near, named, settings, seed)
    drawn = int((split[rows] != NONE).sum()) - int(has_split.sum())
    rows, near, named = _placed(rows, split[rows] != NONE, near, named)
    first = np.full(len(ledger), NONE, np.int32)
    first[rows] = groups.first_of_groups(ledger.ids, ledger.batch, rows, np.concatenate([near, named]))
    changed = replace(ledger, split=split, group=group, names=names)
    return Assignment(changed, first, rows, groups.components(len(rows), near), drawn), known


def files_of_images(files: pd.DataFrame, images: int) -> NDArray[np.int32]:
    """Return the row of the accepted file of each of n images, (n,), NONE where there is none."""
    accepted = np.flatnonzero(files["reason"].isna().to_numpy())
    number = files["image"].to_numpy()[accepted]
    found = np.full(images, NONE, np.int32)
    found[number[number < images]] = accepted[number < images]
    return found


def _placed(rows: Rows, is_placed: NDArray[np.bool_], near: Links, named: Links) -> tuple[Rows, Links, Links]:
    """Return the images that have a split, and the links between them."""
    if is_placed.all():
        return rows, near, named
    number = np.cumsum(is_placed) - 1
    near, named = (number[links[is_placed[links].all(axis=1)]] for links in (near, named))
    return rows[is_placed], near, named


def _with_names(ledger: Ledger, files: pd.DataFrame) -> tuple[NDArray[np.int32], list[str]]:
    """Return the code of each image's group name, and the names; images that are not listed now keep theirs.

    Of copies of an image, the one in the manifest names its group, or else the first that has a name.
    """
    images, codes = files["image"].to_numpy(), files["group"].cat.codes.to_numpy()
    given = list(files["group"].cat.categories)
    if not any(given) and not (ledger.group != NONE).any():
        return ledger.group, ledger.names
    known = {name: code for code, name in enumerate(ledger.names)}
    recoded = np.array([*(known.setdefault(name, len(known)) if name else NONE for name in given), NONE], np.int32)
    listed = np.flatnonzero((images != NONE) & (images < len(ledger)) & (codes != NONE))
    order = np.lexsort([files["reason"].notna().to_numpy()[listed], recoded[codes[listed]] == NONE])
    listed = listed[order[::-1]]  # so that of copies of an image the first counts, which is written last
    group = ledger.group.copy()
    group[images[listed]] = recoded[codes[listed]]
    return group, list(known)


def _links_by_name(
    rows: Rows, group: NDArray[np.int32], names: list[str], ledger: Ledger, files: pd.DataFrame
) -> Links:
    """Link the images of each name; an image whose copies are in several groups is in all of them."""
    known = {name: code for code, name in enumerate(names)}
    recoded = np.array([*(known.get(name, NONE) for name in files["group"].cat.categories), NONE], np.int32)
    of_files, images = recoded[files["group"].cat.codes], files["image"].to_numpy()
    is_named = (of_files != NONE) & (images != NONE) & (images < len(ledger))
    in_ledger = np.flatnonzero(group != NONE)
    position = np.full(len(ledger), NONE, np.int64)
    position[rows] = np.arange(len(rows))
    at = position[np.concatenate([in_ledger, images[is_named]])]
    return groups.links_by_name(at[at >= 0], np.concatenate([group[in_ledger], of_files[is_named]])[at >= 0])


class _Facts:
    """What the files say of n images: by what they are stratified, and which splits they allow."""

    def __init__(self, files: pd.DataFrame, file_of: NDArray[np.int32], *, multi_label: bool) -> None:
        """Look up the files of images; NONE for an image that no source lists now."""
        domains, labels, splits = (files[name].cat.categories for name in ("domain", "label", "splits"))
        key = np.zeros(len(file_of), np.int64)
        for name in ("domain", "label", "splits"):
            key = key * len(files[name].cat.categories) + files[name].cat.codes.to_numpy()[file_of]
        key[file_of == NONE] = NONE
        codes, distinct = pd.factorize(key)
        self.kind = codes.astype(np.int32)
        self._multi_label = multi_label
        self.kinds: list[tuple[Stratum | None, tuple[str, ...]]] = []
        for each in distinct.tolist():
            rest, allowed = divmod(each, len(splits))
            domain, label = divmod(rest, len(labels))
            is_listed = each != NONE
            stratum = self._stratum_of(domains[domain], labels[label]) if is_listed else None
            self.kinds.append((stratum, tuple(splits[allowed].split()) if is_listed else SPLITS))

    def _stratum_of(self, domain: str, label: str) -> Stratum:
        return domain, *(label_sets.split(label) or [NO_LABELS] if self._multi_label else [label])


def _splits(
    ids: image_ids.Digests, rows: Rows, split: NDArray[np.int8], facts: _Facts, near: Links, named: Links,
    settings: params.Ingest, seed: int,
) -> NDArray[np.int8]:  # fmt: skip
    """Return the split of each image, (n,); NONE for a new image that cannot be assigned.

    Only groups with a new image are looked at one by one; of the images of all others, the splits' counts matter.
    """
    component = groups.components(len(rows), np.concatenate([near, named]))
    is_new = split == NONE
    is_open = np.isin(component, component[is_new])
    is_alone = is_new & (np.bincount(component, minlength=1)[component] == 1)
    del component
    is_joint = is_open & ~is_alone
    singles = Singles(ids, rows[is_alone], facts.kind[is_alone], facts.kinds)
    candidates = [
        Candidate(name, facts.kinds[kind][0], facts.kinds[kind][1], SPLITS[code] if code != NONE else None)
        for name, kind, code in zip(
            image_ids.texts(ids[rows[is_joint]]).to_pylist(), facts.kind[is_joint], split[is_joint], strict=True
        )
    ]
    number = np.cumsum(is_joint) - 1
    near, named = (number[links[is_joint[links[:, 0]]]] for links in (near, named))
    shares = {"val": settings.split.val, "test": settings.split.test}
    shares["train"] = 1 - sum(shares.values())
    settled = _settled(facts, split, ~is_open)
    drawn = assign_splits(candidates, near, named, shares, seed, settled, singles)
    found = split.copy()
    found[is_alone] = drawn
    found[is_joint] = [SPLITS.index(candidate.split) if candidate.split else NONE for candidate in candidates]
    return found


def _settled(facts: _Facts, split: NDArray[np.int8], chosen: NDArray[np.bool_]) -> dict[tuple[Stratum, str], int]:
    """Count some images that have a split by stratum and split."""
    counts = np.bincount(facts.kind[chosen] * len(SPLITS) + split[chosen], minlength=len(facts.kinds) * len(SPLITS))
    settled: dict[tuple[Stratum, str], int] = {}
    for at in np.flatnonzero(counts).tolist():
        stratum, _ = facts.kinds[at // len(SPLITS)]
        if stratum:
            key = stratum, SPLITS[at % len(SPLITS)]
            settled[key] = settled.get(key, 0) + int(counts[at])
    return settled

"""Tabulate every file from the source listings, the scan cache and the previous dataset.

Images are numbers (ledger.py), and text that repeats is a category: of a file mostly its path takes memory.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from rootstock.config import params
from rootstock.images.inspection import Reason
from rootstock.ingest import inbox
from rootstock.ingest.earlier import Earlier, category, concatenated
from rootstock.ingest.items import Item, as_items
from rootstock.ingest.layout import SPLITS
from rootstock.ingest.ledger import NONE, Numbers
from rootstock.ingest.scan import ROWS, Scan, ScanRecord
from rootstock.ingest.sources import SourceListing
from rootstock.system.parallel import grouped

REASONS = [reason.value for reason in Reason]  # all of them, as others may be assigned later
OPEN = " ".join(SPLITS)  # where a source leaves open which split an image is assigned to
Columns = dict[str, Any]


def tabulate(listed: Iterable[SourceListing], before: Earlier, scan: Scan, numbers: Numbers) -> pd.DataFrame:
    """Tabulate the files of all sources: source, path, label, domain, splits, reason, group and image.

    `splits` are those that an image may be assigned to, separated by spaces, `reason` is why a file is rejected, null
    for none, and `image` its number, NONE for none.

    For an unreachable source these are its previous files. For the inbox, earlier deliveries are added to the current
    one; if an image has been delivered again, the later label counts. A file that is not listed now has a null group.
    """
    return concatenated([_of_source(entry, before, scan, numbers) for entry in listed])


def _of_source(entry: SourceListing, before: Earlier, scan: Scan, numbers: Numbers) -> pd.DataFrame:
    if entry.source is None:
        return _earlier_files(entry.spec, before)
    files = _current_files(entry, scan, numbers)
    if not entry.stays:
        return files
    earlier = _earlier_files(entry.spec, before)
    stay = (earlier["image"] != NONE) & ~np.isin(earlier["image"], files["image"], kind="table")
    return concatenated([files, earlier[stay]]).sort_values("path", kind="stable", ignore_index=True)


def _current_files(entry: SourceListing, scan: Scan, numbers: Numbers) -> pd.DataFrame:
    assert entry.source is not None
    items = as_items(entry.source.items)
    reasons, images = [np.empty(0, np.int8)], [np.empty(0, np.int32)]
    for some in grouped(scan.up_to_date(entry.spec.path, items), ROWS):
        found = [_result(item, record) for item, record in some]
        reasons.append(np.array([REASONS.index(why) if why else NONE for why, _ in found], np.int8))
        images.append(numbers.of([image for _, image in found]))
    columns: Columns = {
        name: pd.Categorical(np.array([getattr(kind, name) for kind in items.kinds], object)).take(items.codes)
        for name in ("label", "domain")
    }
    columns["splits"] = pd.Categorical([" ".join(kind.splits) for kind in items.kinds]).take(items.codes)
    columns["reason"] = category(np.concatenate(reasons), REASONS)
    groups = pa.repeat("", len(items)) if items.groups is None else items.groups
    columns["group"] = groups.dictionary_encode().to_pandas()
    return _frame(entry.spec.title(), items.stamps.paths.to_pandas(), np.concatenate(images), columns)


def _result(item: Item, record: ScanRecord | None) -> tuple[Reason | None, str | None]:
    """Return why a file is rejected, or the id of its image."""
    if record is None or item.problem:
        return item.problem or Reason.UNREADABLE, None
    return record.reason, record.image_id


def _frame(source: str, path: "pd.Series[str]", image: NDArray[np.int32], columns: Columns) -> pd.DataFrame:
    sources = category(np.zeros(len(image), np.int32), [source])
    return pd.DataFrame({"source": sources, "path": path, **columns, "image": image})


def _earlier_files(spec: params.Source, before: Earlier) -> pd.DataFrame:
    title = spec.title()
    manifest = before.files[before.files["source"] == title]
    rejected = before.rejected[before.rejected["source"] == title]
    good = manifest.assign(reason=category(np.full(len(manifest), NONE, np.int32), REASONS))
    bad = rejected.assign(image=np.full(len(rejected), NONE, np.int32))
    kept = ["path", "label", "domain", "reason", "image"]
    files = concatenated([good[kept], bad[kept]]).sort_values("path", kind="stable", ignore_index=True)
    earlier_domains = {source["name"]: source["domain"] for source in before.summary.get("sources", [])}
    domains = files["domain"].astype("str")
    domains = domains.where(domains != earlier_domains.get(title), spec.domain)  # rows of a table may have their own
    some, none = np.zeros(len(files), np.int32), np.full(len(files), NONE, np.int32)
    columns: Columns = {name: files[name].array for name in ("label", "reason")}
    columns |= {"domain": pd.Categorical(domains), "splits": category(some, [OPEN]), "group": category(none, [])}
    return _frame(title, files["path"], files["image"].to_numpy(), columns)


def resolve_owners(files: pd.DataFrame, before: Earlier) -> None:
    """Assign an image that is in both the inbox and another source to the one that delivered it first.

    The other file is rejected permanently: files that left the inbox are not read again, so a conflict that rejected
    both would be forgotten by the next run, and the image would reappear.

    Args:
        files: as `tabulate` returns them; `reason` is changed in place.
        before: the dataset that was found.
    """
    title = inbox.SPEC.title()
    if title not in files["source"].cat.categories:
        return
    earlier = before.manifest.loc[before.manifest["source"] == title, "image"]
    good = files.loc[files["reason"].isna(), ["source", "label", "image"]]
    delivered = good["source"] == title
    ours, others = good["image"][delivered], good["image"][~delivered]
    both = np.isin(good["image"], ours, kind="table") & np.isin(good["image"], others, kind="table")
    good, delivered = good[both], delivered[both]
    owned = delivered == good["image"].isin(earlier)
    labels = good[owned].drop_duplicates(["image", "label"]).drop_duplicates("image", keep=False)
    label = labels.set_index("image")["label"].astype(object)  # images with a single label
    late = good[~owned]
    same = late["label"].to_numpy(object) == label.reindex(late["image"]).to_numpy()
    rows = late.index.to_numpy()
    reject(files, rows[same], Reason.DUPLICATE)
    reject(files, rows[~same], Reason.CONFLICTING_LABEL)


def reject_ambiguous(files: pd.DataFrame) -> None:
    """Keep each image once, and reject it completely if it has two labels; `reason` is changed in place."""
    good = np.flatnonzero(files["reason"].isna().to_numpy() & (files["image"] != NONE).to_numpy())
    image, label = files["image"].to_numpy()[good], files["label"].cat.codes.to_numpy()[good]
    order = np.argsort(image, kind="stable")
    is_again = np.diff(image[order], prepend=NONE) == 0
    if not is_again.any():
        return
    differs = is_again & (np.diff(label[order].astype(np.int32), prepend=0) != 0)
    is_torn = np.isin(image, image[order[differs]])
    again = np.zeros(len(good), bool)
    again[order[is_again]] = True
    reject(files, good[again & ~is_torn], Reason.DUPLICATE)
    reject(files, good[is_torn], Reason.CONFLICTING_LABEL)


def reject(files: pd.DataFrame, rows: NDArray[np.int64], reason: Reason) -> None:
    """Reject the files of some rows, by position, in place."""
    files.iloc[rows, files.columns.get_loc("reason")] = reason.value  # type: ignore[index]

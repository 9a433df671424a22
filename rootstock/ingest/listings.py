"""Tabulate every file from the source listings, the scan cache and the previous dataset."""

from typing import Any

import numpy as np
import pandas as pd

from rootstock.config import params
from rootstock.dataset import image_ids
from rootstock.dataset.tables import Dataset
from rootstock.images.inspection import Reason
from rootstock.ingest import inbox
from rootstock.ingest.layout import SPLITS
from rootstock.ingest.scan import Scan
from rootstock.ingest.sources import SourceListing

COLUMNS = ["source", "path", "label", "domain", "splits", "image_id", "reason", "group"]


def tabulate(entry: SourceListing, before: Dataset, scan: Scan) -> pd.DataFrame:
    """Tabulate the files of one source: path, label, domain, allowed splits, image id or rejection reason, and group.

    For an unreachable source these are its previous files. For the inbox, earlier deliveries are added to the current
    one; if an image has been delivered again, the later label counts. A file that is not listed now has a null group.
    """
    if entry.source is None:
        return _earlier_files(entry.spec, before)
    files = _current_files(entry, scan)
    if not entry.stays:
        return files
    earlier = _earlier_files(entry.spec, before)
    stay = earlier["image_id"].notna() & ~image_ids.is_in(earlier["image_id"], files["image_id"])
    return pd.concat([files, earlier[stay]], ignore_index=True).sort_values("path", kind="stable")


def _current_files(entry: SourceListing, scan: Scan) -> pd.DataFrame:
    assert entry.source is not None
    items = entry.source.items
    reasons: list[str | None] = []
    names: list[str | None] = []
    for item, record in scan.up_to_date(entry.spec.path, items):
        if record is None or item.problem:
            reasons.append((item.problem or Reason.UNREADABLE).value)
            names.append(None)
        else:
            reasons.append(record.reason and record.reason.value)
            names.append(record.image_id)
    columns: dict[str, Any] = {
        name: [getattr(item, name) for item in items] for name in ("path", "label", "domain", "splits", "group")
    }
    columns |= {"image_id": np.array(names, object), "reason": np.array(reasons, object)}
    files = pd.DataFrame(columns | {"source": entry.spec.title()}, columns=COLUMNS, index=range(len(items)))
    return files.astype(dict.fromkeys(("source", "path", "label", "domain", "image_id", "reason", "group"), "str"))


def _earlier_files(spec: params.Source, before: Dataset) -> pd.DataFrame:
    title = spec.title()
    manifest = before.manifest[before.manifest["source"] == title]
    rejected = before.rejected[before.rejected["source"] == title]
    files = pd.concat([manifest, rejected]).reindex(columns=COLUMNS).sort_values("path", kind="stable")
    earlier_domains = {source["name"]: source["domain"] for source in before.summary.get("sources", [])}
    domains = files["domain"].where(
        files["domain"] != earlier_domains.get(title), spec.domain
    )  # rows of a table may have their own domain
    return files.assign(domain=domains, splits=files["path"].map(lambda _: SPLITS))


def resolve_owners(files: pd.DataFrame, before: Dataset) -> pd.DataFrame:
    """Assign an image that is in both the inbox and another source to the one that delivered it first.

    The other file is rejected permanently: files that left the inbox are not read again, so a conflict that rejected
    both would be forgotten by the next run, and the image would reappear.
    """
    title = inbox.SPEC.title()
    earlier_ids = before.manifest.loc[before.manifest["source"] == title, "image_id"]
    good = files[files["reason"].isna()]
    delivered = good["source"] == title
    both = delivered.groupby(good["image_id"]).transform("nunique") > 1
    owned = delivered == image_ids.is_in(good["image_id"], earlier_ids)
    labels = good[owned].drop_duplicates(["image_id", "label"]).drop_duplicates("image_id", keep=False)
    label = labels.set_index("image_id")["label"]  # images with a single label
    late = good[both & ~owned]
    same = late["label"].to_numpy() == label.reindex(late["image_id"]).to_numpy()
    files = files.copy()
    files.loc[late.index, "reason"] = np.where(same, Reason.DUPLICATE.value, Reason.CONFLICTING_LABEL.value)
    return files


def reject_ambiguous(files: pd.DataFrame) -> pd.DataFrame:
    """Keep each image once, and reject it completely if it has two labels."""
    files = files.copy()
    good = files[files["reason"].isna()]
    labels = good.groupby("image_id")["label"].transform("nunique")
    files.loc[labels.index[labels > 1], "reason"] = Reason.CONFLICTING_LABEL.value
    good = files[files["reason"].isna()]
    files.loc[good.index[good["image_id"].duplicated()], "reason"] = Reason.DUPLICATE.value
    return files

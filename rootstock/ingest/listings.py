"""What every file is, by what the sources list now, by what was read of it, and by what the data set had before."""

from typing import Any

import numpy as np
import pandas as pd

from rootstock.config import params
from rootstock.dataset.tables import Dataset
from rootstock.images.inspection import Reason
from rootstock.ingest import inbox
from rootstock.ingest.layout import SPLITS, Item
from rootstock.ingest.scan import Scan
from rootstock.ingest.sources import SourceListing

COLUMNS = ["source", "path", "label", "domain", "splits", "image_id", "reason"]


def tabulate(entry: SourceListing, before: Dataset, scan: Scan) -> pd.DataFrame:
    """Tabulate the files of one source: path, label, domain, allowed splits, and image id or reason.

    Of a source that is away these are the files of before. To what lies in the inbox now come the images that it
    brought before; of an image that has been delivered again, the later word counts.
    """
    if entry.source is None:
        return _before(entry.spec, before)
    files = _listed(entry, scan)
    if not entry.stays:
        return files
    earlier = _before(entry.spec, before)
    stay = earlier["image_id"].notna() & ~earlier["image_id"].isin(files["image_id"])
    return pd.concat([files, earlier[stay]], ignore_index=True).sort_values("path", kind="stable")


def _listed(entry: SourceListing, scan: Scan) -> pd.DataFrame:
    assert entry.source is not None
    title, looks = entry.spec.title(), scan.looks(entry.spec.path)

    def row(item: Item) -> tuple[Any, ...]:
        look = looks.get(item.path)
        reason: Reason | None
        if item.problem or look is None or look.stamp != item.stamp:
            reason, name = item.problem or Reason.UNREADABLE, None
        else:
            reason, name = look.reason, look.image_id
        return title, item.path, item.label, item.domain, item.splits, name, reason and reason.value

    files = pd.DataFrame([row(item) for item in entry.source.items], columns=COLUMNS)
    return files.astype({"image_id": "object", "reason": "object"})


def _before(spec: params.Source, before: Dataset) -> pd.DataFrame:
    title = spec.title()
    manifest = before.manifest[before.manifest["source"] == title]
    rejected = before.rejected[before.rejected["source"] == title]
    files = pd.concat([manifest, rejected]).reindex(columns=COLUMNS).sort_values("path", kind="stable")
    was = {source["name"]: source["domain"] for source in before.summary.get("sources", [])}
    domains = files["domain"].where(files["domain"] != was.get(title), spec.domain)  # rows may have their own
    return files.assign(domain=domains, splits=files["path"].map(lambda _: SPLITS))


def settle_owners(files: pd.DataFrame, before: Dataset) -> pd.DataFrame:
    """Leave an image that both the inbox and another source have to the one that brought it first.

    The other's file is rejected for good: what has left the inbox is not read again, so that a conflict which takes
    the image from both would be forgotten by the next look, and the image be there again.
    """
    title = inbox.SPEC.title()
    brought = before.manifest.loc[before.manifest["source"] == title, "image_id"]
    good = files[files["reason"].isna()]
    delivered = good["source"] == title
    both = delivered.groupby(good["image_id"]).transform("nunique") > 1
    owned = delivered == good["image_id"].isin(brought)
    labels = good[owned].drop_duplicates(["image_id", "label"]).drop_duplicates("image_id", keep=False)
    label = labels.set_index("image_id")["label"]  # of those that have one
    late = good[both & ~owned]
    same = late["label"].to_numpy() == label.reindex(late["image_id"]).to_numpy()
    files = files.copy()
    files.loc[late.index, "reason"] = np.where(same, Reason.DUPLICATE.value, Reason.CONFLICTING_LABEL.value)
    return files


def reject_ambiguous(files: pd.DataFrame) -> pd.DataFrame:
    """Keep an image once; turn it away altogether where it stands under two labels."""
    files = files.copy()
    good = files[files["reason"].isna()]
    labels = good.groupby("image_id")["label"].transform("nunique")
    files.loc[labels.index[labels > 1], "reason"] = Reason.CONFLICTING_LABEL.value
    good = files[files["reason"].isna()]
    files.loc[good.index[good["image_id"].duplicated()], "reason"] = Reason.DUPLICATE.value
    return files

"""Groups of images that belong together: those with the same group name, near duplicates, and what both connect."""

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from rootstock.ingest.near_duplicates import NO_LINKS, Links


def links_by_name(images: pd.DataFrame, named: pd.DataFrame) -> Links:
    """Link each image to the first one with the same group name.

    Args:
        images: n images, with the column image_id.
        named: columns image_id and group; other images are ignored, and an image may have several names.

    Returns:
        (m, 2) int64 positions in `images`.
    """
    if named.empty:
        return NO_LINKS
    at = pd.Index(images["image_id"]).get_indexer(pd.Index(named["image_id"]))
    here = pd.DataFrame({"at": at, "group": named["group"].to_numpy(object)})[at >= 0]
    links = np.stack([here.groupby("group")["at"].transform("min"), here["at"]], axis=1).astype(np.int64)
    return np.unique(links[links[:, 0] != links[:, 1]], axis=0)


def components(n: int, links: Links) -> NDArray[np.int32]:
    """Return the number of each image's connected component, (n,)."""
    graph = coo_array((np.ones(len(links), np.int8), (links[:, 0], links[:, 1])), shape=(n, n))
    component: NDArray[np.int32] = connected_components(graph, directed=False)[1]
    return component


def group_ids(images: pd.DataFrame, links: Links) -> "pd.Series[str]":
    """Return the group id of each image, (n,): the id of the group's first image.

    That is the smallest id of the earliest batch, so that images that join a group do not change its id, and the order
    of images makes no difference. If groups merge, the id of the older one stays.

    Args:
        images: n images, with the columns image_id and batch, the number of the ingest that brought it.
        links: (m, 2) positions in `images` of images that belong together.
    """
    component, place = components(len(images), links), np.arange(len(images))
    shared = np.flatnonzero(np.bincount(component, minlength=1)[component] > 1)
    members = images[["batch", "image_id"]].iloc[shared].assign(group=component[shared], place=shared)
    first = members.sort_values(["batch", "image_id"]).groupby("group")["place"].first()
    place[shared] = first.reindex(component[shared]).to_numpy()
    return images["image_id"].iloc[place].set_axis(images.index)

"""Groups of images that belong together: those with the same group name, near duplicates, and what both connect."""

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from rootstock.dataset.image_ids import Digests
from rootstock.ingest.near_duplicates import NO_LINKS, Links


def links_by_name(images: NDArray[np.int64], names: NDArray[np.signedinteger]) -> Links:
    """Link each image to the first one with the same group name.

    Args:
        images: (n,) positions; an image may have several names, and so occur more than once.
        names: (n,) codes of names, at least 0.

    Returns:
        (m, 2) int64 positions.
    """
    if not len(images):
        return NO_LINKS
    first = np.full(names.max() + 1, images.max(), np.int64)
    np.minimum.at(first, names, images)
    links = np.stack([first[names], images], axis=1)
    return np.unique(links[links[:, 0] != links[:, 1]], axis=0)


def components(n: int, links: Links) -> NDArray[np.int32]:
    """Return the number of each image's connected component, (n,)."""
    graph = coo_array((np.ones(len(links), np.int8), (links[:, 0], links[:, 1])), shape=(n, n))
    component: NDArray[np.int32] = connected_components(graph, directed=False)[1]
    return component


def first_of_groups(ids: Digests, batch: NDArray[np.int32], rows: NDArray[np.int32], links: Links) -> NDArray[np.int32]:
    """Return the first image of each image's group, (n,), by whose id the group is known.

    That is the smallest id of the earliest batch, so that images that join a group do not change its id, and the order
    of images makes no difference. If groups merge, the id of the older one stays.

    Args:
        ids: of images, those that are asked for among them.
        batch: the number of the ingest that brought each.
        rows: (n,) the images that are asked for.
        links: (m, 2) positions in `rows` of images that belong together.
    """
    component, first = components(len(rows), links), rows.copy()
    shared = np.flatnonzero(np.bincount(component, minlength=1)[component] > 1)
    members = rows[shared]
    order = np.lexsort([ids[members], batch[members]])  # by batch, then by id
    found, at = np.unique(component[shared[order]], return_index=True)  # of equal ones, the first
    first[shared] = members[order[at[np.searchsorted(found, component[shared])]]]
    return first

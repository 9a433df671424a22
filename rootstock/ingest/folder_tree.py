"""The folders of a listing as a tree, with image counts."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from rootstock.ingest.layout import Parts

NEGLIGIBLE_SHARE = 0.1  # a negligible share of images, such as a cover image next to the class folders


@dataclass
class Folder:
    """A folder of a listing: its own images, the total including subfolders, and the subfolders with images."""

    images: int = 0
    total: int = 0
    folders: "dict[str, Folder]" = field(default_factory=dict)

    @property
    def is_divided(self) -> bool:
        """Whether almost all of its images lie in subfolders."""
        return bool(self.folders) and self.images <= NEGLIGIBLE_SHARE * self.total


def tree(images: Mapping[Parts, int]) -> Folder:
    """Build the tree of folders from the number of images in each."""
    top = Folder()
    for parts, count in images.items():
        at = top
        at.total += count
        for part in parts:
            at = at.folders.setdefault(part, Folder())
            at.total += count
        at.images += count
    return top


def merged(folders: Iterable[Folder]) -> Folder:
    """Merge folders into one, adding up their images."""
    both = Folder()
    below: dict[str, list[Folder]] = {}
    for one in folders:
        both.images += one.images
        both.total += one.total
        for name, inner in one.folders.items():
            below.setdefault(name, []).append(inner)
    both.folders = {name: merged(inner) if len(inner) > 1 else inner[0] for name, inner in below.items()}
    return both

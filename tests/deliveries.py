"""The delivery that is in a folder or store, as a retraining lists it."""

from pathlib import Path

from rootstock.ingest import inbox


def delivery_in(folder: Path | str, group: str | None = None) -> inbox.Delivery:
    """List an inbox, without a pause to wait for files that are still being written."""
    return inbox.list_delivery(str(folder), 0, group=group)


def items(files) -> dict[str, tuple[str, str]]:
    """Domain and label of each file."""
    return {item.path: (item.domain, item.label) for item in files.items}

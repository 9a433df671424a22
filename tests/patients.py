"""Pictures of patients, which are named groups: several of each, in a folder of its own."""

from pathlib import Path

import pandas as pd

from rootstock.config import params
from tests.images import put
from tests.store import Store

PATIENT = r"(?P<group>patient_\d+)"


def put_patients(folder: Path, patients: range, scans: int = 3, labels: tuple[str, ...] = ("ill", "well")) -> Path:
    """Write pictures of patients, of alternate classes: `<class>/patient_<number>/<scan>.png`."""
    for patient in patients:
        for scan in range(scans):
            put(folder / labels[patient % len(labels)] / f"patient_{patient}" / f"{scan}.png", 1000 * patient + scan)
    return folder


def source(path: Path, **settings) -> params.Source:
    return params.Source(path=str(path), domain="clinic", **settings)


def named(store: Store) -> pd.DataFrame:
    """The manifest with the name of each group."""
    return store.manifest.merge(store.ledger[["image_id", "group"]], on="image_id")


def notes_of(store: Store) -> list[str]:
    return store.summary["groups"]["notes"]

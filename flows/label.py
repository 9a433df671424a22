"""Take labels that a person gave to unlabelled images of the inbox: each moves to the folder of its class.

    python -m flows.label data/report/to_label.csv     # with a column label filled in, in a spreadsheet
    python -m flows.label project-1-at-2026-11-28.json  # exported by Label Studio

The next retraining trains on them. Images without a label stay where they are.
"""

import argparse
from pathlib import Path

from rootstock.dataset import tables
from rootstock.ingest import inbox, labelled
from rootstock.system.entry_points import entry_point
from tasks.bridge import workspace


def main() -> None:
    """Move labelled images; an error is one sentence and exit status 1, and nothing is moved then."""
    parser = argparse.ArgumentParser(description="Move images of the inbox that were labelled to their classes.")
    parser.add_argument("labels", type=Path, help="to_label.csv with a column label, or an export of Label Studio")
    parser.add_argument("--new-classes", action="store_true", help="accept classes that the champion does not know")
    asked = parser.parse_args()
    with entry_point("label"):
        params = workspace.read_params()
        manifest = tables.load_manifest(workspace.DATASET)
        known, several = tables.classes_of(manifest), tables.is_multi_label(manifest)
        labels = labelled.read_labels(asked.labels, multi_label=several)
        delivery = inbox.list_delivery(params.retrain.inbox, 0, params.ingest.sources)
        labelled.check(labels, delivery, known, new_classes=asked.new_classes, multi_label=several)
        moved = labelled.move(labels, delivery)
        left = len(delivery.unlabelled.items) - moved
        print(f"{moved:,} images were moved to their classes in {delivery.url}; {left:,} are still unlabelled.")


if __name__ == "__main__":
    main()

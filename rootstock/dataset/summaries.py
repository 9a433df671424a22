"""What the summary of a dataset says, in words."""

from typing import Any

NAMED = 5  # classes listed by name in a message


def describe_missing_classes(summary: dict[str, Any]) -> str:
    """Describe which classes have no test or validation images, and so are not evaluated; "" if all have some."""
    by_class = summary.get("by_class", {})
    found = {
        "test": [label for label, counts in by_class.items() if not counts["test"]],
        "validation": [label for label, counts in by_class.items() if not counts["val"]],
    }
    return ", ".join(f"no {split} images of {_enumerate(labels)}" for split, labels in found.items() if labels)


def describe_groups(summary: dict[str, Any]) -> str:
    """Describe how many named groups there are; "" if there are none."""
    groups = summary.get("groups", {})
    if not groups:
        return ""
    return f"{groups['images']:,} images in {groups['named']:,} named group{'' if groups['named'] == 1 else 's'}"


def _enumerate(labels: list[str]) -> str:
    return " and ".join(labels) if len(labels) < NAMED else f"{', '.join(labels[:NAMED])} and others ({len(labels)})"

"""Sets of labels as text, and as the matrix that a multi-label head is trained on."""

import pandas as pd
from hypothesis import given, strategies as st

from rootstock.dataset import label_sets

LABELS = st.sampled_from(["ant", "bee", "red bee", "wasp", "Ähre"])


@given(st.lists(LABELS))
def test_a_text_has_each_label_once_and_in_order(labels):
    text = label_sets.join(labels)
    assert label_sets.split(text) == sorted(set(labels))
    assert label_sets.join(reversed(labels)) == text


@given(st.lists(st.lists(LABELS), min_size=1))
def test_the_matrix_says_which_classes_each_image_has(images):
    texts = pd.Series([label_sets.join(labels) for labels in images], dtype="str")
    classes = label_sets.classes_in(texts)
    assert classes == sorted({label for labels in images for label in labels})
    has = label_sets.matrix(texts, classes)
    assert [{name for name, there in zip(classes, row, strict=True) if there} for row in has] == list(map(set, images))


@given(st.lists(st.lists(LABELS)))
def test_a_row_for_each_label_leaves_out_images_without_any(images):
    table = pd.DataFrame({"label": pd.Series(map(label_sets.join, images), dtype="str"), "number": range(len(images))})
    rows = label_sets.one_row_per_label(table)
    assert list(zip(rows["number"], rows["label"], strict=True)) == [
        (number, label) for number, labels in enumerate(images) for label in sorted(set(labels))
    ]


def test_a_label_that_is_none_of_the_classes_does_not_count():
    assert label_sets.matrix(pd.Series(["ant;wasp", "wasp"]), ["ant"]).tolist() == [[True], [False]]

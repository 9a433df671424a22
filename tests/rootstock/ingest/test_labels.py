"""Class names: normalisation, and pairs that a person would read as the same."""

import unicodedata

import pytest
from hypothesis import given, strategies as st

from rootstock.ingest.labels import FLAG, check_lookalikes, clean, copies, lookalike_key, lookalikes
from rootstock.system.errors import SourceError


@given(st.text(max_size=12), st.sampled_from(["", " ", "\t", "\u00a0", "  "]), st.sampled_from(["NFC", "NFD"]))
def test_a_label_is_normalised_in_unicode_form_and_surrounding_spaces(label, blank, form):
    assert clean(blank + unicodedata.normalize(form, label) + blank) == clean(label)
    assert clean(clean(label)) == clean(label)
    assert lookalike_key(clean(label)) == lookalike_key(label)


ONE_CLASS = [
    ("cat", "Cat"), ("cat", "CAT"), ("straße", "STRASSE"), ("cat", "\uff43at"), ("1", "\uff11"), ("cat", "c\u00adat"),
    ("cat", "cat\u200b"), ("cat", "\ufeffcat"), ("1", "1.0"), ("01", "1"), ("2", "+2.00"), ("cat", "cat."),
    ("dog house", "dog_house"), ("dog-house", "dog house"), ("dog house", "dog  house"), ("doghouse", "doghouse."),
    ("cat", "\u0441\u0430t"), ("Opel", "\u041epel"), ("ﬁre", "fire"), ("don't", "don\u2019t"), ("_cat", "cat"),
    ("A", "\u0410"), ("o", "\u03bf"), ("A1", "\u04101"), ("-1", "\u22121"), (".5", "0.50"), ("cat", "cat\u3164"),
    ("\u0130zmir", "izmir"), ("KIZ", "k\u0131z"), ("St. Bernard", "St Bernard"), ("\u2764\ufe0f", "\u2764"),
]  # fmt: skip
TWO_CLASSES = [
    ("cat", "cats"), ("A+", "A-"), ("1", "-1"), ("1", "10"), ("1.5", "15"), ("+", "-"), ("_", "-"), ("café", "cafe"),
    ("a", "\u03b1"), ("C", "C++"), ("3-5", "35"), ("0", "O"), ("1", "l"), (f"{'1' * 30}2", f"{'1' * 30}3"),
    ("carport", "car port"), ("猫", "犬"), ("🐱", "🐶"), ("", "x"),
    (".5", "5"), ("\u03b11", "a1"), ("\U0001f468\u200d\U0001f467", "\U0001f468\U0001f467"),  # a family, two people
    (f"{FLAG}\U000e0067\U000e0065\U000e007f", f"{FLAG}\U000e0067\U000e0073\U000e007f"),  # England, Scotland
]  # fmt: skip


@pytest.mark.parametrize("pair", ONE_CLASS)
def test_labels_that_look_the_same_are_an_error_that_names_both(pair):
    with pytest.raises(SourceError, match="These labels look like the same class: ") as error:
        check_lookalikes({pair[0]: "photos: a/1.png", pair[1]: "inbox: b/2.png"})
    for label in pair:
        assert label in str(error.value) or ascii(label)[1:-1] in str(error.value)


@pytest.mark.parametrize("pair", TWO_CLASSES)
def test_labels_that_a_person_can_tell_apart_are_two_classes(pair):
    assert lookalikes(dict.fromkeys(pair, "")) == []


@pytest.mark.parametrize(
    "copy",
    ["ants (1)", "ants - Copy", "ants - Copy (2)", "ants copy", "ants copy 2", "Copy of ants", "Kopie von ants",
     "ants - Kopie", "Copie de ants", "ants_copy", "Ants (12)", "Copia di ants", "ants \u2013 kopia",
     "ants - \u526f\u672c", "ants\u306e\u30b3\u30d4\u30fc 2", "ants \u2014 \u043a\u043e\u043f\u0438\u044f"],
)  # fmt: skip
def test_a_label_named_like_a_copy_is_reported_only_beside_the_original(copy):
    assert copies(dict.fromkeys(["ants", copy, "bees"], "")) == [("ants", copy)]
    assert copies(dict.fromkeys([copy, "bees"], "")) == []


def test_numbered_classes_are_not_copies_of_each_other():
    assert copies(dict.fromkeys(["Mustang", "Mustang (1969)"], "")) == []
    assert copies(dict.fromkeys(["type (1)", "type (2)", "photocopy", "copy"], "")) == []

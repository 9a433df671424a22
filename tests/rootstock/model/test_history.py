"""The history of champions is never lost."""

from hypothesis import given, strategies as st

from rootstock.model import history
from rootstock.model.history import FIRST, PROMOTED, REJECTED, Row

ROWS = [
    Row(FIRST, 1, "The first one.", 45, lock="lock 1", params="seed: 0", model="a"),
    Row(PROMOTED, 2, "It is better.", 105, 60, ("shed",), '[{"what": "overall"}]', "b", "lock 2", "seed: 1"),
    Row(REJECTED, 2, "It is not.", 165, 60, ("barn", "attic")),
]


def test_rows_are_read_in_the_order_in_which_they_were_written(tmp_path):
    history.write(tmp_path, ROWS)
    assert history.read(tmp_path) == ROWS
    assert history.read(tmp_path / "nowhere") == []


def test_a_rollback_of_an_earlier_version_is_one(tmp_path):
    history.write(tmp_path, [Row("brought back", 1, "v1 in place of v2.", 45)])
    assert [row.decision for row in history.read(tmp_path)] == [history.ROLLED_BACK]


def test_a_version_belongs_to_the_row_that_introduced_it():
    assert {version: row.lock for version, row in history.versions(ROWS).items()} == {1: "lock 1", 2: "lock 2"}


def test_the_longer_of_two_copies_counts(tmp_path):
    history.write(tmp_path / "a", ROWS[:1])
    history.write(tmp_path / "b", ROWS)
    assert history.read(tmp_path / "a", tmp_path / "b") == ROWS
    history.keep(tmp_path / "a", tmp_path / "b")
    assert history.read(tmp_path / "b") == ROWS
    history.keep(tmp_path / "b", tmp_path / "a")
    assert history.read(tmp_path / "a") == ROWS
    history.keep(tmp_path / "b", tmp_path / "new")
    assert history.read(tmp_path / "new") == ROWS


@given(st.lists(st.builds(Row, st.text(), st.integers(1, 99), st.text(), st.integers(0, 10**12)), max_size=4))
def test_any_history_is_read_as_it_was_written(tmp_path_factory, rows):
    folder = tmp_path_factory.mktemp("history")
    history.write(folder, rows)
    assert history.read(folder) == rows

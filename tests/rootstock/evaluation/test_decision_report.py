"""How the comparison of champion and challenger is told: phrases, table and plot."""

import json
import re

from rootstock.evaluation import decision_report
from rootstock.evaluation.paired_comparison import ACCURACY, BALANCED, DOMAIN, OVERALL, compare
from rootstock.model.history import PROMOTED
from tests.paired_outcomes import decided, outcomes


def test_an_accuracy_is_not_said_to_be_100_percent_where_an_image_is_wrong():
    found = compare(OVERALL, OVERALL, outcomes("old", 2_499, 0, 1))
    assert found.describe().startswith("99.9% test accuracy overall, champion 100% (2,500 images, ")
    assert "| overall | 2,500 | 100% | 99.9% |" in decision_report.table([found])


def test_of_hundreds_of_new_classes_a_reason_names_some_and_the_table_has_the_worst():
    classes = [outcomes("new", 0, 30 + n // 20, 0, n % 20, known=False, label=f"kind {n}") for n in range(200)]
    found = decided(outcomes("old", 500, 0, 0), *classes, new=("new",))
    assert found.outcome == PROMOTED and len(found.reason) < 1500
    assert re.search(r"; and \d{3} more; as good on what was there before", found.reason)
    assert len(found.comparisons) == 202
    table = decision_report.table(found.comparisons)
    assert len(table.splitlines()) == 2 + 2 + decision_report.MOST_ROWS
    assert "| kind 19 |" in table and "| kind 0 |" not in table and "| overall |" in table
    assert len(decision_report.draw(found.comparisons)) < 200_000


def test_of_hundreds_of_domains_the_table_and_the_plot_have_those_that_lost_most():
    domains = [outcomes(f"site {n}", 40, 300 - n, n) for n in range(200)]
    found = decided(outcomes("old", 500, 0, 0), *domains)
    table = decision_report.table(found.comparisons)
    assert len(table.splitlines()) <= 2 + 1 + 2 * decision_report.MOST_ROWS
    assert "| site 199 |" in table and "| site 0 |" not in table and "| overall |" in table
    assert len(decision_report.draw(found.comparisons)) < 200_000


def test_the_domain_that_decides_is_in_the_table_beside_many_of_a_few_images():
    few = [outcomes(f"tiny {n}", 6, 0, 2) for n in range(30)]
    found = decided(outcomes("old", 5000, 1200, 0), *few, outcomes("decisive", 1700, 100, 300))
    assert "on decisive" in found.reason and "| decisive |" in decision_report.table(found.comparisons)


def test_a_figure_that_is_balanced_over_classes_says_so_wherever_it_stands():
    images = [outcomes("old", 280, 20, 2), outcomes("new", 0, 9, 0, 1, label="y", known=False)]
    for setting, name in (("accuracy", ACCURACY), ("balanced_accuracy", BALANCED)):
        found = decided(*images, measure=setting)
        assert f"99.3% {name} overall, champion 93.4%" in found.reason
        assert (BALANCED in found.reason) == (name == BALANCED)
        assert [one["measure"] for one in json.loads(found.to_json())] == [name, name, ACCURACY]
        assert decision_report.measure(found.comparisons) == name
        head = decision_report.table(found.comparisons).splitlines()[0]
        assert (BALANCED in head) == (name == BALANCED) and found.comparisons[-1].describe().startswith("90.0% test")


def test_the_axis_of_the_plot_names_the_figure_and_its_rows_are_whole(monkeypatch):
    drawn = []
    monkeypatch.setattr(decision_report, "png", drawn.append)
    found = decided(outcomes("old", 280, 20, 2), outcomes("old", 80, 5, 4, unseen=True), measure="balanced_accuracy")
    decision_report.draw(found.comparisons)
    [axes] = drawn[0].axes
    assert axes.get_xlabel() == "balanced test accuracy, 95 % interval"
    assert [tick.get_text() for tick in axes.get_yticklabels()] == [
        "overall (391)", "old (391)", "never looked at (unbiased) (89)"
    ]  # fmt: skip


def test_images_of_one_group_are_counted_as_such():
    found = compare(OVERALL, OVERALL, outcomes("old", 4, 2, 0, scene=6))
    assert "(6 images in 1 group, gain " in found.describe()
    assert "| overall | 6 in 1 group |" in decision_report.table([found])


def test_comparisons_are_shown_overall_and_then_by_domain_in_the_table_and_the_plot():
    found = decided(outcomes("b|c", 50, 3, 1), outcomes("a", 20, 0, 0))
    assert [(one.about, one.what) for one in found.comparisons] == [
        (OVERALL, "overall"), (DOMAIN, "a"), (DOMAIN, "b|c")
    ]  # fmt: skip
    kept = json.loads(found.to_json())
    assert [one["images"] for one in kept] == [74, 20, 54]
    assert list(kept[0]["gain"]) == ["value", "low", "high"]
    assert "| b\\|c | 54 | 94.4% | 98.1% | +3.7 (" in decision_report.table(found.comparisons)
    assert decision_report.draw(found.comparisons).startswith(b"\x89PNG")


def test_of_few_images_or_groups_a_gain_has_no_interval():
    for few in (outcomes("old", 30, 6, 3), outcomes("old", 300, 60, 30, scene=10)):
        found = compare(OVERALL, OVERALL, few)
        assert found.describe().endswith(", gain +7.7 points, too few for an interval)")
        assert "| 84.6% | 92.3% | +7.7 |" in decision_report.table([found])
        assert list(found.to_dict()["gain"]) == ["value"]
    enough = compare(OVERALL, OVERALL, outcomes("old", 31, 6, 3))
    assert enough.describe().endswith(", gain +7.5 points, -8.2 to +23.5)")

"""The verdict that a run shows in the UI: the winner's test figures, why it won, both models on validation."""

import json
from types import SimpleNamespace

import pytest

from rootstock.evaluation import figures
from rootstock.evaluation.decision import Decision
from rootstock.evaluation.paired_comparison import PairedComparison
from rootstock.system.files import read_json
from tasks.bridge import artifacts


def shown(workspace, monkeypatch) -> str:
    monkeypatch.chdir(workspace.root)
    validation, test = (read_json(workspace.root / f"data/report/{name}.json") for name in ("validation", "test"))
    return "\n".join(artifacts._measured(validation, test, ""))


def test_it_says_how_good_the_winner_is_and_why_it_won(flow_ran_in, monkeypatch):
    text = shown(flow_ran_in, monkeypatch)
    test = json.loads((flow_ran_in.root / "data/report/test.json").read_text())
    assert text.startswith(f"## {figures.percent(test['accuracy']['value'])} test accuracy\n")
    won = {"head": "The head on frozen features won: ", "finetuned": "The fine-tuned network won: "}[test["winner"]]
    assert won in text and "---" not in text.partition("| validation |")[0]


def test_a_model_of_an_earlier_version_does_not_say_why(after_flow, monkeypatch):
    path = after_flow.root / "data/model/model.json"
    described = json.loads(path.read_text())
    del described["why"]
    path.unlink()  # a link to DVC's cache
    path.write_text(json.dumps(described))
    assert " won: " not in shown(after_flow, monkeypatch)


@pytest.mark.parametrize(("balanced", "name"), [(False, "Test accuracy"), (True, "Balanced test accuracy")])
def test_a_decision_names_the_figure_that_it_was_made_by(monkeypatch, balanced, name):
    shown = []
    monkeypatch.setattr(artifacts, "PREFECT_API_URL", SimpleNamespace(value=lambda: "http://here"))
    monkeypatch.setattr(artifacts, "create_markdown_artifact", lambda text, **_: shown.append(text))
    share = {"value": 0.5, "low": 0.4, "high": 0.6}
    compared = PairedComparison("overall", "overall", 90, 90, share, share, balanced=balanced)
    artifacts.show_decision(Decision("promoted", "Better.", (compared,)), "2 new images", "Kept.")
    assert f"\n\n{name} before and after\n" in shown[0]
    assert ("balanced" in shown[0].partition("before and after")[0].lower()) == balanced

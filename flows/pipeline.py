"""Images in, a tested and versioned classifier out.

    ingest ───> extract ──> train_head ──> fine_tune ──> evaluate
    backbone ─┘

    python -m flows.pipeline    # here, now, with params.yaml; PREFECT_API_URL set: a server shows it

A stage that is up to date ends as Cached. Values given to the flow go over those of params.yaml, key by key, and are
written there, so that DVC records them; they are put back where the run does not end well. Every run is kept as a DVC
experiment named after the flow run, and tracked where `track` says.
"""

import argparse
from dataclasses import dataclass
from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run
from prefect.states import Completed

from flows.ui import form
from rootstock.config.params import Params
from rootstock.dataset import summaries, tables
from rootstock.evaluation import figures
from rootstock.system.entry_points import add_verbose
from rootstock.system.errors import RootstockError
from rootstock.system.files import read_json
from tasks.backbone import backbone
from tasks.bridge import artifacts, causes, early_imports, experiments, run_params, tracking, versions, workspace
from tasks.bridge.orchestration import Outcome, failed, submit
from tasks.bridge.workspace_lock import locked_workspace
from tasks.evaluate import evaluate
from tasks.extract import extract
from tasks.fine_tune import fine_tune
from tasks.ingest import ingest
from tasks.train_head import train_head


@dataclass(frozen=True)
class Verdict:
    """Outcome of each stage, and what was measured.

    Args:
        outcomes: of the stages.
        validation: validation.json: each model's figures on the validation images.
        test: test.json: the winner's figures on the test images.
        untested: classes without test or validation images, in words.
        uses: what earlier models measured on the same test images do to the figures, in words.
    """

    outcomes: list[Outcome]
    validation: dict[str, Any]
    test: dict[str, Any]
    untested: str = ""
    uses: str = ""

    @property
    def headline(self) -> str:
        """Format the winner, its test accuracy, and the classes that this does not cover."""
        untested = f" ({self.untested})" if self.untested else ""
        share, count = figures.percent(self.test["accuracy"]["value"]), figures.counted(self.test["images"], "image")
        return f"{artifacts.MODELS[self.test['winner']]}: test accuracy {share} ({count}){untested}"


def chain(params: Params) -> Verdict:
    """Run every stale stage; a stage that is up to date ends as Cached."""
    images = submit(ingest, params)
    weights = submit(backbone, params)
    features = submit(extract, params, wait_for=[images, weights])
    head = submit(train_head, params, wait_for=[features])
    network = submit(fine_tune, params, where=params.finetune.where, wait_for=[head])
    verdict = submit(evaluate, params, wait_for=[network])
    outcomes = [stage.result() for stage in (images, weights, features, head, network, verdict)]
    validation, test = (read_json(workspace.REPORT / name) for name in ("validation.json", "test.json"))
    untested = summaries.describe_missing_classes(tables.load_summary(workspace.DATASET))
    return Verdict(outcomes, validation, test, untested, artifacts.describe_test_uses())


@flow(name="pipeline", validate_parameters=False)  # form.py says why
def pipeline(
    seed: int = form.SHOWN["seed"],
    ingest: form.Ingest = form.SHOWN["ingest"],
    backbone: form.Backbone = form.SHOWN["backbone"],
    extract: form.Extract = form.SHOWN["extract"],
    head: form.Head = form.SHOWN["head"],
    finetune: form.Finetune = form.SHOWN["finetune"],
    evaluate: form.Evaluate = form.SHOWN["evaluate"],
    track: form.Track = form.SHOWN["track"],
) -> State[Verdict]:
    """Ingest images, extract frozen features, train a head, fine-tune, and choose the better model on validation.

    Args:
        seed: Random seed.
        ingest: Which images are ingested, and how they are checked, split and packed into shards.
        backbone: The pretrained network, kept frozen as a feature extractor.
        extract: How the frozen features are computed and stored.
        head: The linear classifier on the frozen features.
        finetune: Unfreezes later layers in stages, starting from the linear head's weights.
        evaluate: How the models are evaluated and reported.
        track: Where the run is tracked besides DVC.
    """
    asked = form.given(
        seed=seed, ingest=ingest, backbone=backbone, extract=extract, head=head, finetune=finetune, evaluate=evaluate,
        track=track,
    )  # fmt: skip
    try:
        with locked_workspace() as log:
            if left := experiments.save_what_repro_left():
                log.info("What `dvc repro` left: %s", left.note)
            with run_params.in_params_file(asked, log.info) as params:
                verdict = chain(params)
                kept = experiments.keep(flow_run.name)
            tracked = tracking.track(params.track, kept.name or flow_run.name)
            # A run that waits for the workspace would replace the report.
            artifacts.show_verdict(
                verdict.outcomes, verdict.validation, verdict.test, verdict.uses, kept, flow_run.name
            )
    except RootstockError as error:
        return failed(error)
    for note in filter(None, (kept.note, tracked)):
        log.info(note)
    return Completed(message=f"{verdict.headline}. {kept.note}", data=verdict)


def table(verdict: Verdict) -> str:
    """Format each model's validation accuracy, the winner's test accuracy, and where the report is."""
    lines = []
    for name, called in (("head", "frozen-feature head"), ("finetuned", "fine-tuned model")):
        if name in verdict.validation:
            won = "  <- won" if verdict.test["winner"] == name and "finetuned" in verdict.validation else ""
            accuracy = verdict.validation[name]["accuracy"]["value"]
            lines.append(f"validation accuracy, {called:<20} {figures.percent(accuracy):>6}{won}")
    test = verdict.test["accuracy"]
    images = artifacts.describe_test_images(verdict.test)
    lines.append(
        f"test accuracy {figures.percent(test['value'])} ({figures.describe_interval(test)}), on {images}, "
        "not used for any choice"
    )
    if repeated := verdict.test.get("repeated_splits"):
        mean = figures.percent(repeated["mean"])
        lines.append(f"test accuracy {mean}, frozen-feature head, mean over repeated splits of all images")
    if verdict.uses:
        lines.append(verdict.uses)
    if verdict.untested:
        lines.append(f"note: {verdict.untested}; these figures do not cover them")
    lines += ["", f"report: {(workspace.REPORT / 'report.html').resolve().as_uri()}"]
    return "\n".join(lines)


def main() -> None:
    """Run with params.yaml; an error is one sentence, and exit status 1."""
    parser = argparse.ArgumentParser(description="Run every stale stage, with params.yaml.")
    add_verbose(parser)
    with causes.entry_point("pipeline", verbose=parser.parse_args().verbose):
        params = workspace.read_params()  # report a mistake at once
        versions.prepare()
        if versions.is_probably_stale():
            early_imports.begin(params.backbone.name)
        verdict: Any = pipeline()
        print(f"\n{table(verdict)}")


if __name__ == "__main__":
    main()

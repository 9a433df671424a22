"""New images from the inbox in; a better champion out, or the old one and the reason.

    inbox ──> ingest ──> extract ──> train_head ──> fine_tune ──> evaluate ──> compare ──> promote
      └─> drift                      (a challenger)                              └───────> reject

    python -m flows.retrain    # here and now; deployed, a schedule or an event can start it, too

Features are extracted only for new images. A challenger that is not better is kept as an experiment; the champion and
its data version stay, and the delivery is not added to the dataset. Where the test images are too few to decide, the
delivery stays in the inbox, and counts together with the next.
"""

import argparse
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefect import flow, get_run_logger, task
from prefect.client.schemas.objects import State
from prefect.events import emit_event
from prefect.runtime import flow_run
from prefect.states import Completed

from flows.pipeline import chain
from flows.ui import form
from rootstock.config import params as parameters
from rootstock.config.params import Params
from rootstock.ingest import inbox
from rootstock.ingest.inbox import Delivery
from rootstock.ingest.opening import Unreachable
from rootstock.model import history
from rootstock.system import escape
from rootstock.system.entry_points import add_verbose
from rootstock.system.errors import RootstockError, SourceError
from tasks.bridge import (
    artifacts,
    causes,
    champion,
    early_imports,
    experiments,
    promotion,
    question,
    run_params,
    tracking,
    verdict,
    versions,
    workspace,
)
from tasks.bridge.champion import DeliverySummary
from tasks.bridge.orchestration import failed, reported_task, submit
from tasks.bridge.workspace_lock import locked_workspace
from tasks.ingest import ingest, ingest_with

if TYPE_CHECKING:  # these import torch and scikit-learn
    from rootstock.evaluation.decision import Decision
    from rootstock.evaluation.drift import Drift

NOTHING_NEW, WAITING = "Nothing new", "Waiting"  # beside the outcomes of a decision, capitalised
ASK_AGAIN = "Nobody has answered: run it again on a terminal (python -m flows.retrain), or from the UI."
DECIDE_YOURSELF = "To decide yourself, set retrain.undecided to ask{first}, and run again."
compare = task(name="compare", task_run_name="compare")(reported_task(verdict.compare))
promote = task(name="promote", task_run_name="promote")(reported_task(promotion.promote))
restore_champion = task(name="restore champion", task_run_name="restore champion")(
    reported_task(promotion.restore_champion)
)


@dataclass(frozen=True)
class RetrainResult:
    """How a retraining ended: the name of its state, the reason, the drift of unlabelled images, the accuracy table."""

    name: str
    message: str
    drifts: "tuple[Drift, ...]" = ()
    table: str = ""


@flow(name="retrain", validate_parameters=False)  # form.py says why
def retrain(retrain: form.Retrain = form.SHOWN["retrain"]) -> State[RetrainResult]:
    """Ingest what has arrived, train a challenger, and promote it if it is better and as good on what was there.

    Args:
        retrain: Where new images arrive, and when a challenger replaces the champion.
    """
    try:
        with locked_workspace() as log:
            experiments.save_what_repro_left()
            with run_params.in_params_file(form.given(retrain=retrain), log.info) as params:
                champion.check()
                for restored in champion.check_files():
                    log.warning("%s", restored)
                if params.retrain.git == "push" and (pushed := promotion.publish()):
                    log.info("%s", pushed)
                delivery = list_inbox(params.retrain, params.ingest.sources)
                drifts = check_drift(delivery, params)
                ended = replace(challenge(delivery, params), drifts=drifts)
    except RootstockError as error:
        return failed(error)
    return Completed(name=ended.name, message=ended.message, data=ended)


def challenge(delivery: Delivery, params: Params) -> RetrainResult:
    """Train a challenger on a delivery, and decide."""
    if not champion.is_aside():  # else a killed run left it there, and this one continues
        if not delivery.labelled.items:
            return RetrainResult(NOTHING_NEW, "The inbox holds no labelled images.")
        if champion.was_tried(delivery, params.retrain, can_ask=question.can_ask()):
            return RetrainResult(NOTHING_NEW, "Nothing has arrived since the last delivery, which is not champion.")
    champion.set_aside()
    new, ingested, refusal = ingest_delivery(delivery, params)
    if refusal:
        rejected = champion.decide_untrained(history.REJECTED, refusal)
        return settle(rejected, new, new.describe(), delivery, params, ingested)
    if new.images < params.retrain.min_new:
        return undo_ingest(new, delivery, params, ingested)
    if params.retrain.undecided == "wait" and (lacking := verdict.find_lacking_images(params, new.new_domains)):
        reason = f"Too few test images to show that a new model is as good as before: it takes {lacking}."
        undecided = champion.decide_untrained(history.UNDECIDED, reason)
        return settle(undecided, new, new.describe(), delivery, params, ingested)
    trained = chain(params)
    extracted = next(outcome.note for outcome in trained.outcomes if outcome.stage == "extract")
    summary = f"{new.describe()}; {extracted}"
    get_run_logger().info("%s. The challenger: %s", summary, trained.headline)
    decision = ask_person(compare.submit(params, new.new_domains).result(), params.retrain)
    return settle(decision, new, summary, delivery, params, ingested)


def ask_person(decision: "Decision", settings: parameters.Retrain) -> "Decision":
    """Let a person, or `retrain.undecided`, decide what the test images leave open."""
    match settings.undecided:
        case "promote" if decision.outcome == history.UNDECIDED and not decision.is_for_a_person:
            return replace(decision, outcome=history.PROMOTED, reason=f"{decision.reason} {question.BY_SETTING}")
        case "ask" if decision.outcome == history.UNDECIDED or decision.trade_off:
            return question.ask(decision)
        case _:
            return decision


def list_inbox(settings: parameters.Retrain, sources: tuple[parameters.Source, ...]) -> Delivery:
    """List the files in the inbox that are no longer being written."""
    delivery = inbox.list_delivery(settings.inbox, settings.settle_seconds, sources, settings.group)
    counts = f"{len(delivery.labelled.items):,} labelled files, {len(delivery.unlabelled.items):,} unlabelled"
    get_run_logger().info("%s: %s, %s still being written", settings.inbox, counts, f"{delivery.unsettled:,}")
    return delivery


def check_drift(delivery: Delivery, params: Params) -> "tuple[Drift, ...]":
    """Measure the drift of unlabelled images from the champion's training images, and list them for labelling."""
    if not delivery.unlabelled.items:
        return ()
    drifts = champion.score_drift(delivery.unlabelled, params)
    for drift in drifts:
        get_run_logger().info("%s", drift.describe())
    artifacts.show_drift(drifts)
    if found := [drift for drift in drifts if drift.drifted]:
        reason = " ".join(drift.describe() for drift in found)
        emit("rootstock.drift.found", reason, domains=[drift.domain for drift in found])
    return tuple(drifts)


def ingest_delivery(delivery: Delivery, params: Params) -> tuple[DeliverySummary, set[str], str]:
    """Ingest a delivery; return its summary, the ingested files and, if it cannot be used, the reason."""
    try:
        submit(ingest_with(delivery.labelled), params).result()
    except Unreachable:
        raise
    except SourceError as error:  # not a full disk, say
        submit(ingest, params).result()  # raises as well unless the delivery is the cause
        return DeliverySummary(), set(), f"The delivery cannot be ingested: {error}"
    new, ingested = champion.summarize_delivery(), champion.ingested_files(delivery)
    share = new.unusable / max(new.unusable + new.images, 1)
    if share > params.retrain.max_rejected:
        limit = f"retrain.max_rejected is {params.retrain.max_rejected:.0%}"
        return new, ingested, f"{share:.0%} of the new files cannot be used, and {limit}: {', '.join(new.examples)}."
    return new, ingested, ""


def undo_ingest(new: DeliverySummary, delivery: Delivery, params: Params, ingested: set[str]) -> RetrainResult:
    """Restore the champion and its data: there are no new images, or too few."""
    promotion.undo()
    if new.images:
        fewer = f"fewer than retrain.min_new ({params.retrain.min_new}): they stay in the inbox until there are more."
        return RetrainResult(WAITING, f"{new.describe()}, {fewer}")
    champion.tidy(delivery, ingested, params.retrain)
    return RetrainResult(NOTHING_NEW, "All images in the inbox have been ingested before.")


def settle(
    decision: "Decision", new: DeliverySummary, summary: str, delivery: Delivery, params: Params, ingested: set[str]
) -> RetrainResult:
    """Carry out the decision, emit an event, and clear the inbox of the ingested files."""
    uses = artifacts.describe_test_uses() if decision.comparisons else ""  # of the challenger, before it may have to go
    decided = {"decision": decision.outcome, "reason": decision.reason}
    if decision.promote:
        kept = promote.submit(decision, new, flow_run.name, params.retrain).result()
        tracked = tracking.track(params.track, flow_run.name, **decided, champion=f"v{kept.version}")
    else:
        trained = bool(decision.comparisons)  # before the champion takes the challenger's place
        tracked = tracking.track(params.track, flow_run.name, **decided) if trained else ""
        tried = champion.sign(delivery, params.retrain, unanswered=decision.unanswered)
        kept = restore_champion.submit(decision, new, flow_run.name, tried).result()
    note = " ".join(filter(None, [kept.note, tracked, uses, what_next(decision, params.retrain)]))
    artifacts.show_decision(decision, summary, note)
    emit(f"rootstock.champion.{'promoted' if decision.promote else 'kept'}", decision.reason, version=kept.version)
    if decision.outcome != history.UNDECIDED:  # else the delivery waits in the inbox, and adds up with the next
        champion.tidy(delivery, ingested, params.retrain, promoted=decision.promote)
    message = f"{decision.reason} {summary}. {note}"
    return RetrainResult(decision.outcome.capitalize(), message, table=champion.accuracy_table(decision))


def what_next(decision: "Decision", settings: parameters.Retrain) -> str:
    """Describe what is left to a person: to commit a new champion, or to decide; "" where nothing is."""
    notes = []
    if decision.promote and settings.git == "none" and experiments.has_commits(Path()):
        notes.append(f"To record it in git, commit {', '.join(map(str, promotion.COMMITTED))}.")
    if decision.outcome == history.UNDECIDED:
        notes.append("The delivery stays in the inbox, and counts together with the next.")
    if decision.unanswered:
        notes.append(ASK_AGAIN)
    if settings.undecided == "wait" and (decision.outcome == history.UNDECIDED or decision.trade_off):
        moved = decision.outcome == history.REJECTED and settings.after != "keep"
        back = f", move the images back from {inbox.REJECTED}" if moved else ""
        notes.append(DECIDE_YOURSELF.format(first=back))
    return " ".join(notes)


def emit(event: str, reason: str, **more: Any) -> None:  # noqa: ANN401
    """Emit an event that automations react to (automations.yaml)."""
    resource = {"prefect.resource.id": "rootstock.champion", "prefect.resource.name": "champion"}
    emit_event(event, resource, payload={"reason": reason, "run": flow_run.name, **more})


def main() -> None:
    """Run with params.yaml; an error is one sentence and exit status 1."""
    parser = argparse.ArgumentParser(description="Ingest new images, and promote a challenger if it is better.")
    add_verbose(parser)
    with causes.entry_point("retrain", verbose=parser.parse_args().verbose):
        params = workspace.read_params()  # report a mistake at once
        versions.prepare()
        if inbox.is_probably_filled(params.retrain.inbox):
            early_imports.begin(params.backbone.name)
        ended: Any = retrain()
        print("\n".join(filter(None, ["", *(drift.describe() for drift in ended.drifts), escape.plain(ended.table)])))
        print(f"{ended.name}: {ended.message}")


if __name__ == "__main__":
    main()

"""What has arrived in the inbox in; a better champion out, or the old one and the reason.

    inbox ──> ingest ──> extract ──> train_head ──> fine_tune ──> evaluate ──> compare ──> promote
      └─> drift                      (a challenger)                              └───────> put back

    python -m flows.retrain    # here, now; deployed, a schedule, an event or a person starts it

Only new images are extracted. A challenger that is not better is kept as an experiment; the champion stays, with its
data version, and what was delivered stays out of the data set.
"""

import argparse
from dataclasses import dataclass, replace
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
from rootstock.system import escape
from rootstock.system.errors import RootstockError
from tasks.bridge import artifacts, causes, champion, promotion, run_params, terminal, versions, workspace
from tasks.bridge.champion import Arrived
from tasks.bridge.orchestration import failed, submit, worded
from tasks.bridge.workspace_lock import locked_workspace
from tasks.ingest import ingest, ingest_with

if TYPE_CHECKING:  # torch and scikit-learn: only for who has something to compare
    from rootstock.evaluation.challenge import Decision
    from rootstock.evaluation.drift import Drift

NOTHING_NEW, WAITING, PROMOTED, REJECTED = "Nothing new", "Waiting", "Promoted", "Rejected"
compare = task(name="compare", task_run_name="compare")(worded(champion.compare))
promote = task(name="promote", task_run_name="promote")(worded(promotion.promote))
put_back = task(name="put back", task_run_name="put back")(worded(promotion.put_back))


@dataclass(frozen=True)
class Ended:
    """How a retraining ended: the name of its state, why, how far unlabelled images have drifted, the figures."""

    name: str
    message: str
    drifts: "tuple[Drift, ...]" = ()
    figures: str = ""


@flow(name="retrain", validate_parameters=False)  # form.py says why
def retrain(retrain: form.Retrain = form.SHOWN["retrain"]) -> State[Ended]:
    """Take in what has arrived, train a challenger on it, and promote that only where it is truly better.

    Args:
        retrain: Where images arrive, and when a challenger takes the champion's place.
    """
    try:
        with locked_workspace() as log:
            versions.save_what_repro_left()
            with run_params.in_params_file(form.given(retrain=retrain), log.info) as params:
                champion.check()
                for said in champion.check_files():
                    log.warning("%s", said)
                if params.retrain.git == "push" and (pushed := promotion.publish()):
                    log.info("%s", pushed)
                delivery = look(params.retrain, params.ingest.sources)
                drifts = drifted(delivery, params)
                ended = replace(challenged(delivery, params), drifts=drifts)
    except RootstockError as error:
        return failed(error)
    return Completed(name=ended.name, message=ended.message, data=ended)


def challenged(delivery: Delivery, params: Params) -> Ended:
    """Go from a delivery to a decision."""
    if not champion.is_aside():  # else a killed run left it there, and this one goes on
        if not delivery.labelled.items:
            return Ended(NOTHING_NEW, "The inbox holds no labelled images.")
        if champion.was_rejected(delivery):
            return Ended(NOTHING_NEW, "Nothing has arrived since the last delivery was rejected.")
    champion.set_aside()
    came, taken, refusal = take_in(delivery, params)
    if refusal:
        return settle(champion.refuse(refusal), came, came.say(), delivery, params, taken)
    if came.images < params.retrain.min_new:
        return left_alone(came, delivery, params, taken)
    verdict = chain(params)
    extracted = next(outcome.note for outcome in verdict.outcomes if outcome.stage == "extract")
    said = f"{came.say()}; {extracted}"
    get_run_logger().info("%s. The challenger: %s", said, verdict.said)
    return settle(compare.submit(params, came.new_domains).result(), came, said, delivery, params, taken)


def look(settings: parameters.Retrain, sources: tuple[parameters.Source, ...]) -> Delivery:
    """List what lies in the inbox and is not being written any more."""
    delivery = inbox.list_delivery(settings.inbox, settings.settle_seconds, sources)
    counts = f"{len(delivery.labelled.items)} files in classes, {len(delivery.unlabelled.items)} unlabelled"
    get_run_logger().info("%s: %s, %d still being written", settings.inbox, counts, delivery.unsettled)
    return delivery


def drifted(delivery: Delivery, params: Params) -> "tuple[Drift, ...]":
    """Compare unlabelled images with those that the champion was trained on, and list them for labelling."""
    if not delivery.unlabelled.items:
        return ()
    drifts = champion.score_drift(delivery.unlabelled, params)
    for drift in drifts:
        get_run_logger().info("%s", drift.describe())
    artifacts.show_drift(drifts)
    if found := [drift for drift in drifts if drift.drifted]:
        said = " ".join(drift.describe() for drift in found)
        tell("rootstock.drift.found", said, domains=[drift.domain for drift in found])
    return tuple(drifts)


def take_in(delivery: Delivery, params: Params) -> tuple[Arrived, set[str], str]:
    """Pack what is new; says what arrived, which files were taken in and, if the delivery cannot be used, why."""
    try:
        submit(ingest_with(delivery.labelled), params).result()
    except RootstockError as error:
        submit(ingest, params).result()  # it raises, too, where the delivery is not at fault
        return Arrived(), set(), f"The delivery cannot be taken in: {error}"
    came, taken = champion.arrived(), champion.taken(delivery)
    share = came.unusable / max(came.unusable + came.images, 1)
    if share > params.retrain.max_rejected:
        limit = f"retrain.max_rejected is {params.retrain.max_rejected:.0%}"
        return came, taken, f"{share:.0%} of the new files cannot be used, and {limit}: {', '.join(came.examples)}."
    return came, taken, ""


def left_alone(came: Arrived, delivery: Delivery, params: Params, taken: set[str]) -> Ended:
    """Bring everything back to how it was: there is nothing new, or too little of it."""
    promotion.undo()
    if came.images:
        fewer = f"fewer than retrain.min_new ({params.retrain.min_new}): they wait for more."
        return Ended(WAITING, f"{came.say()}, {fewer}")
    champion.tidy(delivery, taken, params.retrain)
    return Ended(NOTHING_NEW, "All images in the inbox have been taken in before.")


def settle(
    decision: "Decision", came: Arrived, said: str, delivery: Delivery, params: Params, taken: set[str]
) -> Ended:
    """Do what was decided, tell whoever wants to know, and tidy the inbox of the files that were taken in."""
    if decision.promote:
        kept = promote.submit(decision, came, flow_run.name, params.retrain).result()
    else:
        kept = put_back.submit(decision, came, flow_run.name, delivery).result()
    artifacts.show_decision(decision, said, kept.note)
    tell(f"rootstock.champion.{'promoted' if decision.promote else 'kept'}", decision.reason, version=kept.version)
    champion.tidy(delivery, taken, params.retrain, promoted=decision.promote)
    name = PROMOTED if decision.promote else REJECTED
    return Ended(name, f"{decision.reason} {said}. {kept.note}", figures=champion.figures(decision))


def tell(event: str, reason: str, **more: Any) -> None:  # noqa: ANN401
    """Emit an event that automations react to (automations.yaml)."""
    resource = {"prefect.resource.id": "rootstock.champion", "prefect.resource.name": "champion"}
    emit_event(event, resource, payload={"reason": reason, "run": flow_run.name, **more})


def main() -> None:
    """Run with params.yaml; an error is one sentence, and exit status 1."""
    parser = argparse.ArgumentParser(description="Take in what has arrived, and let a better model take over.")
    terminal.add_verbose(parser)
    with causes.entry_point("retrain", verbose=parser.parse_args().verbose):
        workspace.read_params()  # a mistake is said at once
        versions.prepare()
        ended: Any = retrain()
        print("\n".join(filter(None, ["", *(drift.describe() for drift in ended.drifts), escape.plain(ended.figures)])))
        print(f"{ended.name}: {ended.message}")


if __name__ == "__main__":
    main()

"""Fine-tuning for a pipeline that runs on another machine.

The pipeline starts it if `finetune.where` is fine-tune/gpu; data are exchanged through the DVC remote
(tasks/bridge/handoff.py).
"""

import sys

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.states import Completed

from flows.ui import form
from rootstock.system.errors import RootstockError
from tasks.bridge import handoff, run_params
from tasks.bridge.orchestration import Outcome, failed, reported_flow, submit
from tasks.fine_tune import fine_tune as stage


@flow(name="fine-tune", validate_parameters=False)  # form.py says why
def fine_tune(params: form.Everything, lock: str, code: dict[str, str]) -> State[Outcome]:
    """Fine-tune for a pipeline on another machine, and return the network.

    Args:
        params: The parameters of the pipeline that the stage reads.
        lock: Text of its dvc.lock: which data to pull.
        code: Digests of its code, which has to be the same on this machine.
    """
    try:
        with reported_flow():
            handed = run_params.received(params)
            with handoff.workspace_for(stage.name, handed, lock, code):
                outcome = submit(stage, handed).result()
                handoff.return_outputs(stage.name)
    except RootstockError as error:
        return failed(error)
    return Completed(message=outcome.note, data=outcome)


if __name__ == "__main__":
    sys.exit(
        "fine_tune: a pipeline starts this on another machine (finetune.where in params.yaml). Here, its stage is run "
        "by `python -m flows.pipeline` or `dvc repro fine_tune`."
    )

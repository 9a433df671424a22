"""Fine-tuning for a pipeline that runs on another machine.

The pipeline starts it where `finetune.where` is fine-tune/gpu; data come and go by the DVC remote (bridge/handoff.py).
"""

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.states import Completed

from flows.ui import form
from rootstock.system.errors import RootstockError
from tasks.bridge import handoff, run_params
from tasks.bridge.orchestration import Outcome, failed, flow_in_words, submit
from tasks.fine_tune import fine_tune as stage


@flow(name="fine-tune", validate_parameters=False)  # form.py says why
def fine_tune(params: form.Everything, lock: str, code: dict[str, str]) -> State[Outcome]:
    """Fine-tune what a pipeline hands over, and give the network back.

    Args:
        params: What the stage reads of the pipeline's parameters.
        lock: Text of its dvc.lock: which data to pull.
        code: Digests of its code; this machine's has to be the same.
    """
    try:
        with flow_in_words():
            handed = run_params.handed(params)
            with handoff.workspace_for(stage.name, handed, lock, code):
                outcome = submit(stage, handed).result()
                handoff.give_back(stage.name)
    except RootstockError as error:
        return failed(error)
    return Completed(message=outcome.note, data=outcome)

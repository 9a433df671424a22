"""What the epochs of fine-tuning show: which was the best, and what to warn of."""

from collections.abc import Sequence

from rootstock.training.checkpoints import Epoch

MIN_EPOCHS_TO_JUDGE = 3  # with fewer, no warning about the first or last epoch
STILL_FALLING = 0.2  # relative drop of validation loss in the last epoch that suggests more epochs


def best_of(history: list[Epoch]) -> Epoch:
    """Return the epoch with the highest validation accuracy; ties go to the lower log loss."""
    return history[best_first(history)[0]]


def best_first(history: list[Epoch]) -> list[int]:
    """Return the places of all epochs in the history, the best first; see `best_of`."""
    return sorted(range(len(history)), key=lambda epoch: (-history[epoch].val_accuracy, history[epoch].val_loss))


def has_stalled(history: Sequence[Epoch], stage: int, patience: int) -> bool:
    """Whether the last `patience` epochs of a stage improved neither accuracy nor log loss on validation (0: never)."""
    own = [epoch for epoch in history if epoch.stage == stage]
    before, last = own[:-patience], own[-patience:]
    if not patience or not before:
        return False
    accuracy, loss = max(epoch.val_accuracy for epoch in before), min(epoch.val_loss for epoch in before)
    return all(epoch.val_accuracy <= accuracy and epoch.val_loss >= loss for epoch in last)


def warnings(history: Sequence[Epoch]) -> list[str]:
    """Warn if the best epoch is the first, or the last with the loss still falling.

    That the last epoch is the best is normal, since the learning rate ends near zero.
    """
    if len(history) < MIN_EPOCHS_TO_JUDGE:
        return []
    best, before, last = best_of(list(history)), history[-2], history[-1]
    if best is history[0]:
        return ["The first epoch of fine-tuning was the best: try a lower learning rate (lr)."]
    if best is last and before.stage == last.stage and last.val_loss < (1 - STILL_FALLING) * before.val_loss:
        return ["Validation loss was still falling when fine-tuning ended: try more epochs."]
    return []

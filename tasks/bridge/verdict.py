"""The verdict on a challenger: compared with the champion, set aside, on the same test images."""

from dataclasses import replace
from typing import TYPE_CHECKING

from rootstock.config.params import Params
from rootstock.dataset import image_ids, tables
from rootstock.system.errors import DamagedError, ParamsError
from rootstock.system.files import reading, replacing
from tasks.bridge.champion import ASIDE, PREDICTIONS
from tasks.bridge.workspace import DATASET, DELIVERED, FEATURES, IMAGES, MEASURED, MODEL, REPORT, WAITING

if TYPE_CHECKING:  # these import pandas and scikit-learn
    import pandas as pd

    from rootstock.evaluation.decision import Decision
    from rootstock.evaluation.paired_comparison import PairedComparison

ANSWERS = ASIDE / WAITING.name  # of the challenger that is being decided on


def compare(params: Params, new_domains: tuple[str, ...]) -> "Decision":
    """Evaluate champion and challenger on the same test images, and decide.

    A challenger that is worse than the one before, whose delivery still waits, is not promoted.
    """
    import numpy as np

    from rootstock.evaluation import challenge, decision, earlier_challenger, measured_models
    from rootstock.evaluation.paired_comparison import PairedOutcomes
    from rootstock.model import model

    _check_measure(params)
    champion = ASIDE / MODEL.name
    table = challenge.predict_both(
        champion, ASIDE / PREDICTIONS, REPORT / PREDICTIONS, DATASET, IMAGES, FEATURES, MODEL
    )
    before = tables.load_manifest(ASIDE / DATASET.name)
    delivered = ~image_ids.is_in(table["image_id"], before["image_id"])
    of_champion = _older_domains(before, new_domains)
    del before  # of a million images half a gigabyte
    challenger = str(model.describe(MODEL)["digest"])
    unseen = measured_models.first_measured(DELIVERED, table["image_id"][delivered], challenger)
    measured_models.count(MEASURED, table["image_id"].unique(), str(model.describe(champion)["digest"]))
    outcomes = PairedOutcomes(
        domains=table["domain"].to_numpy(object),
        labels=table["label"].to_numpy(object),
        groups=table["group"].to_numpy(np.int64),
        known=table["known"].to_numpy(bool),
        delivered=delivered,
        unseen=table["image_id"].isin(unseen).to_numpy(bool),
        champion=table["champion"].to_numpy(bool),
        challenger=table["challenger"].to_numpy(bool),
    )
    manifest = tables.load_manifest(DATASET)
    older = _older_domains(manifest, new_domains)
    lost = set(model.describe(champion)["classes"]) - set(model.describe(MODEL)["classes"])
    found = decision.decide(
        outcomes, new_domains, params.retrain, older_domains=older, lost_classes=lost, seed=params.seed
    )
    found = earlier_challenger.hold_back(found, _losses(table.assign(delivered=delivered), params))
    remarks = [found.reason]
    if gone := sorted(of_champion - set(manifest["domain"])):
        remarks.append(f"(Not compared on {', '.join(gone)}, whose images are gone from the dataset.)")
    if tables.is_multi_label(manifest):
        remarks.append("(Accuracy here: the share of images whose labels are all right.)")
    return replace(found, reason=" ".join(remarks))


def _older_domains(manifest: "pd.DataFrame", new_domains: tuple[str, ...]) -> set[str]:
    """Return the domains with images to train on in a dataset, but for the new ones."""
    return set(manifest.loc[manifest["split"] == "train", "domain"]) - set(new_domains)


def _losses(table: "pd.DataFrame", params: Params) -> "list[PairedComparison]":
    """Keep the challenger's answers, and compare them with those of the one before, if its delivery waits."""
    import pandas as pd

    from rootstock.evaluation import earlier_challenger

    with replacing(ANSWERS) as temporary:
        table[earlier_challenger.COLUMNS].drop_duplicates("image_id").to_parquet(temporary)
    try:
        with reading(WAITING):
            earlier = pd.read_parquet(WAITING, columns=earlier_challenger.COLUMNS)
    except DamagedError:  # or there is none
        return []
    return earlier_challenger.find_losses(earlier, table, params.retrain, params.seed)


def _check_measure(params: Params) -> None:
    """Check that `retrain.measure` is for this dataset.

    Raises:
        ParamsError: accuracy is to be balanced over classes, and an image may have any number of them.
    """
    if params.retrain.measure != "accuracy" and tables.is_multi_label(tables.load_manifest(DATASET)):
        raise ParamsError(
            f"params.yaml: retrain.measure is {params.retrain.measure}, but the images have any number of classes (a "
            "column labels); expected accuracy: the share of images whose labels are all right"
        )


def find_lacking_images(params: Params, new_domains: tuple[str, ...]) -> str:
    """Describe which older domains have too few test images for any decision; "" if all have enough.

    Even a challenger that loses nothing, and is right wherever the champion is not, would not be shown to be as good.
    """
    import numpy as np

    from rootstock.evaluation import challenge, decision, figures, intervals
    from rootstock.model import model

    manifest = tables.load_manifest(DATASET)
    known = manifest["label"].isin(model.describe(ASIDE / MODEL.name)["classes"]) | tables.is_multi_label(manifest)
    older = manifest[(manifest["split"] == "test") & known & ~manifest["domain"].isin(new_domains)]
    could_gain = challenge.possible_gains(ASIDE / MODEL.name, ASIDE / PREDICTIONS, older)
    lacking = []
    for domain in sorted(_older_domains(manifest, new_domains) | set(older["domain"])):
        of_domain = (older["domain"] == domain).to_numpy()
        rows = older[of_domain]
        groups = len(np.unique(tables.group_numbers(rows)))
        # How alike the images of a group are is seen once there are answers: until then, each may count. So this is
        # the least that is lacking; of groups whose images are answered alike, more is.
        size = intervals.SampleSize(len(rows), groups, estimated=groups < len(rows))
        won = float(could_gain[of_domain].mean()) if len(rows) else 0.0
        if count := decision.lacking_images(len(rows), size, params.retrain.margin, won):
            least = "at least" if groups < len(rows) else "about"
            more = figures.counted(decision.round_up(count), "more test image")
            lacking.append(f"{least} {more} of {domain} (it has {f'{len(rows):,}' if len(rows) else 'none'})")
    return ", ".join(lacking)

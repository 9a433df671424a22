"""fine_tune: images, backbone and head in, a network with fine-tuned later layers out.

python -m tasks.fine_tune
"""

from rootstock.config.params import Params
from rootstock.system.phrases import percent
from tasks.bridge.stage import Summary, stage
from tasks.bridge.workspace import ACTIVATIONS, BACKBONE, CHECKPOINT, DATASET, FINETUNED, HEAD, IMAGES, PIXELS


@stage
def fine_tune(params: Params) -> Summary:
    """Unfreeze layers in stages, starting from the head's weights; keep the best epoch on validation.

    Without stages there is no fine-tuned network: nothing is read, and only an empty history is written.
    """
    from rootstock.backbones import backbones
    from rootstock.dataset import tables
    from rootstock.images import pixel_store
    from rootstock.system.files import digest
    from rootstock.system.parallel import rank
    from rootstock.training import averaging, classifier, epochs, finetune, frozen_layers, head, ranks, stage_plan
    from rootstock.training.class_weights import class_weights
    from rootstock.training.course import Course, save_course
    from rootstock.training.split_images import SplitImages

    if not params.finetune.stages:
        save_course(None, Course(), FINETUNED)
        return Summary(0, "no stages: the backbone stays frozen")
    manifest = tables.load_manifest(DATASET)
    probe = head.load_linear(HEAD)
    backbone = backbones.load(BACKBONE, probe.layer, probe.pooling)
    model = classifier.Classifier(backbone.network, backbone.transform, probe, frozen_statistics=backbone.is_pretrained)
    labels = tables.labels_of_rows(manifest[manifest["split"] == "train"], probe.classes)
    weights = class_weights(labels, len(probe.classes), params.head.class_weight)
    classes = tuple(probe.classes)
    rows = {split: manifest[manifest["split"] == split] for split in ("train", "val")}
    inputs = digest(
        [
            *tables.files_of(DATASET / tables.MANIFEST),
            BACKBONE / backbones.WEIGHTS,
            head.folder_of_linear(HEAD) / head.WEIGHTS,
        ],
        f"{params.seed} {params.finetune.recipe()} {params.head.class_weight}",
    )
    used = {shard for split in rows.values() for shard in split["shard"]}
    # Processes that torchrun has started, maybe on several hosts, cannot fill one store.
    most_gb = None if ranks.started_by_torchrun() else params.cache.pixels_gb
    side = params.finetune.store_size if params.finetune.augment != "none" else 0
    with (
        pixel_store.opened(PIXELS, backbone.transform, IMAGES, used, most_gb) as store,
        pixel_store.opened_for_crops(PIXELS, side, backbone.transform, IMAGES, used, most_gb, store) as crops,
    ):
        train, val = (SplitImages(split, IMAGES, store, crops, classes) for split in rows.values())
        course = finetune.fine_tune(
            model, backbone.transform, train, val, params.finetune, params.seed, CHECKPOINT, inputs, weights,
            frozen_layers.Cache(ACTIVATIONS, params.cache.activations_gb),
        )  # fmt: skip
    if rank() > 0:
        return Summary(0, "done; the first process writes the network", changed=False)
    save_course(model, course, FINETUNED)
    CHECKPOINT.unlink(missing_ok=True)
    best = epochs.best_of(course.history)
    stages = stage_plan.planned(params.finetune, len(rows["train"]))
    where = f"stage {best.stage + 1} of {len(stages)} ({best.unfrozen}), "
    where += f"epoch {best.epoch + 1} of {stages[best.stage].epochs}"
    kept = averaging.chosen_of(course.averages)
    averaged = f", kept {kept}" if kept and kept is not course.averages[0] else ""
    note = f"best after {where}{averaged}: validation {percent(course.val_accuracy)}"
    return Summary(len(rows["train"]), note, seconds=course.seconds)


if __name__ == "__main__":
    fine_tune.main()

"""A row of a comparison of backbones, as `compare.measure` returns it."""

from rootstock.evaluation.compare_table import Row

ROW = Row(
    backbone="shufflenet_v2_x0_5",
    variant=None,
    trained="frozen",
    layer="penultimate",
    pooling="avg",
    image_size=32,
    origin="random, seed 0",
    width=1024,
    parameters=341_792,
    macs=900_000,
    feature_bytes=4096,
    images_per_second=500.0,
    l2=1.0,
    accuracy=0.8,
    accuracy_low=0.6,
    accuracy_high=0.9,
    log_loss=0.5,
    train_images=27,
    val_images=9,
    computed=45,
    seconds=1.5,
    data="0123456789ab",
)

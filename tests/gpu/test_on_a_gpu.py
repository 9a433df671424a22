"""What only a GPU can test; `make test-gpu` on a machine with one, where `rootstock/` and pytest suffice."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.extract import SIDES, draw_photo
from rootstock.backbones.networks import build
from rootstock.config import params
from rootstock.config.architectures import Transform
from rootstock.features.gpu import GpuNetwork
from rootstock.images import decoding, gpu_decoding, loader, pixels
from rootstock.training.classifier import Classifier
from rootstock.training.head import Head
from rootstock.training.step import TrainingStep
from rootstock.training.unfreezing import optimiser_of

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"),
]
GPU = torch.device("cuda")
CLASSES = 5


def transform(interpolation: str = "bilinear", size: int = 224) -> Transform:
    return Transform(size, size * 8 // 7, interpolation, (0.5,) * 3, (0.5,) * 3)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_resizing_in_one_kernel_differs_from_pillow_by_at_most_one_level(interpolation):
    from rootstock.images import gpu_resize

    to, rng = transform(interpolation), np.random.default_rng(0)
    shapes = [(1200, 1600), (225, 3000), (100, 90), (224, 224), (1, 1), (333, 500)]
    images = [torch.from_numpy(rng.integers(0, 256, (3, *shape), np.uint8)) for shape in shapes]
    boxes = [decoding.Box.of(*shape, to) for shape in shapes]
    seen = gpu_resize.resize_and_crop([image.to(GPU) for image in images], boxes, to.size, interpolation).cpu()
    expected = torch.stack([decoding.resize_and_crop(image, to) for image in images])
    differences = (seen.int() - expected.int()).abs()
    print(f"{interpolation}: at most {differences.max()}, {(differences > 0).float().mean():.4%} differ")
    assert differences.max() <= 1


def test_nvjpeg_decodes_nearly_the_same_pixels_as_the_cpu():
    to = transform()
    exif = Image.Exif()
    exif[0x0112] = 6
    contents = [draw_photo(index, SIDES[index % len(SIDES)], 88) for index in range(12)]
    turned = io.BytesIO()
    Image.open(io.BytesIO(contents[0])).save(turned, "JPEG", exif=exif.tobytes())
    grey = io.BytesIO()
    Image.open(io.BytesIO(contents[1])).convert("L").save(grey, "JPEG")
    progressive = io.BytesIO()
    Image.open(io.BytesIO(contents[2])).save(progressive, "JPEG", progressive=True)
    contents += [turned.getvalue(), grey.getvalue(), progressive.getvalue()]
    files = [pixels.open_file(data) for data in contents]
    seen = gpu_decoding.views(files, to, GPU).cpu().int()
    expected = torch.stack([loader.view(data, to) for data in contents]).int()
    for index, (one, other) in enumerate(zip(seen, expected, strict=True)):
        difference = (one - other).abs().float()
        print(f"{index}: mean {difference.mean():.3f}, at most {difference.max():.0f}")
        assert difference.mean() < 1.5


@pytest.mark.parametrize("precision", ["f32", "bf16"])
def test_features_on_the_gpu_equal_those_on_the_cpu(precision):
    network = build("resnet18", 64).eval()
    batch = np.random.default_rng(0).integers(0, 256, (100, 3, 64, 64), np.uint8)
    net = torch.nn.Sequential(loader.Normalise(transform(size=64)), network).eval()
    with torch.inference_mode():
        expected = net(torch.from_numpy(batch)).numpy()
    on_gpu = GpuNetwork(net, precision, GPU, 64)
    seen = np.concatenate(list(on_gpu.stream([batch[:64], batch[64:]])))
    cosine = (seen * expected).sum(1) / np.linalg.norm(seen, axis=1) / np.linalg.norm(expected, axis=1)
    print(f"{precision}: cosine at least {cosine.min():.7f}")
    assert cosine.min() > (0.9999 if precision == "f32" else 0.99)


def losses_of(model: Classifier, *, graph: bool) -> list[float]:
    settings = params.Finetune(batch_size=16)
    step = TrainingStep(model, optimiser_of(model, params.Stage(unfreeze="all", epochs=1, lr=1e-3), settings), settings)
    if not graph:
        step.graphs = None
    draws = torch.Generator().manual_seed(0)
    losses = []
    model.train()
    for number in range(30):
        images = 16 if number % 10 != 9 else 5  # the last of an epoch
        batch = torch.randint(256, (images, 64, 64, 3), dtype=torch.uint8, generator=draws).permute(0, 3, 1, 2)
        target = torch.randint(CLASSES, (images,), generator=draws)
        step.set_learning_rate(number / 30)
        losses.append(step(batch.to(GPU), target.to(GPU)).item())
    assert bool(step.graphs) == graph
    return losses


def classifier() -> Classifier:
    torch.manual_seed(0)
    head = Head(np.zeros((CLASSES, 512), np.float32), np.zeros(CLASSES, np.float32), list("abcde"), 1.0)
    model = Classifier(build("resnet18", 64), transform(size=64), head)
    return model.to(GPU, memory_format=torch.channels_last)


def test_a_captured_step_trains_like_one_that_is_launched_from_python():
    replayed, launched = (losses_of(classifier(), graph=graph) for graph in (True, False))
    print(replayed[::6], launched[::6])
    np.testing.assert_allclose(replayed, launched, rtol=0.03)
    assert replayed[0] != replayed[-1]

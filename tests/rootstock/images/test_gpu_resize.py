"""The kernel that resizes on a GPU, run by Triton's interpreter on the CPU; tests/gpu runs it on a GPU."""

import os
import subprocess
import sys

import pytest

pytest.importorskip("triton", reason="Triton comes with torch for CUDA alone")
CHECK = """
import numpy as np, torch
from rootstock.config.architectures import Transform
from rootstock.images import decoding, gpu_resize

rng = np.random.default_rng(0)
shapes = [(80, 120), (36, 32), (132, 40), (9, 11)]
images = [torch.from_numpy(rng.integers(0, 256, (3, *shape), np.uint8)) for shape in shapes]
for interpolation in ("bilinear", "bicubic"):
    to = Transform(24, 28, interpolation, (0.5,) * 3, (0.5,) * 3)
    boxes = [decoding.Box.of(*shape, to) for shape in shapes]
    seen = gpu_resize.resize_and_crop(images, boxes, to.size, interpolation)
    assert seen.is_contiguous(memory_format=torch.channels_last)
    expected = torch.stack([decoding.resize_and_crop(image, to) for image in images])
    differences = (seen.int() - expected.int()).abs()
    assert differences.max() <= 1 and (differences > 0).float().mean() < 0.05
"""


@pytest.mark.slow
def test_the_kernel_differs_from_the_cpu_by_at_most_one_level():
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    run = subprocess.run([sys.executable, "-c", CHECK], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr

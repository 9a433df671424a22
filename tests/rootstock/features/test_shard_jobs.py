"""What a worker of a cluster does with a shard: on a GPU it decodes on its share of the machine's cores."""

import numpy as np
import pytest
import torch
from torch import nn

from rootstock.backbones.backbones import Backbone
from rootstock.config.params import Extract
from rootstock.features import computing, feature_keys, gpu, planning, shard_jobs
from rootstock.features.engines import Engine
from rootstock.features.feature_extractor import FeatureExtractor
from rootstock.features.reader import Features
from rootstock.images.loader import Normalise
from rootstock.system import processes
from tests.small_dataset import small_backbone


def engine_of(backbone: Backbone, on_gpu: bool) -> Engine:
    network = nn.Sequential(Normalise(backbone.transform), backbone.network).eval()
    there = gpu.GpuNetwork(network, "f32", torch.device("cpu"), 4)
    return Engine("eager", there.forward, 4, there.stream if on_gpu else None)


@pytest.mark.parametrize(
    ("on_gpu", "cluster", "workers", "threads"),
    [
        (True, None, 4, 4),  # a worker per GPU, started for this job
        (True, None, 32, 1),
        (
            True,
            "tcp://scheduler:8786",
            4,
            16,
        ),  # who started the workers there knows how many, and may limit their cores
        (False, None, 4, 1),  # a worker per core
    ],
)
def test_workers_with_a_gpu_share_the_cores_of_the_machine(
    small, folder, base, backbone, tmp_path, monkeypatch, on_gpu, cluster, workers, threads
):
    settings = Extract(engine="eager", runner="dask", cluster=cluster, workers=workers)
    todo = planning.plan(backbone, settings, small.images, tmp_path)
    job = shard_jobs.job_of(todo, settings, small.images, small_backbone(base), tmp_path)
    used, compute = [], computing.compute
    monkeypatch.setattr(shard_jobs, "_ready", lambda job: (backbone, engine_of(backbone, on_gpu)))
    monkeypatch.setattr(shard_jobs, "cores", lambda: 16)
    monkeypatch.setattr(
        computing, "compute", lambda *given, **named: (used.append(given[6]), compute(*given, **named))[1]
    )
    names = [shard_jobs.name_of(file) for file in todo.missing][:2]
    images = [shard_jobs.extract_shard(job, name) for name in names]
    assert used == [threads, threads]
    [found] = feature_keys.find(backbone.description, settings, tmp_path)
    rows = small.manifest[small.manifest["shard"].isin(names)]
    assert sum(images) == len(rows)
    there, expected = (np.concatenate([x for x, _ in Features(place, rows)]) for place in (found, folder))
    np.testing.assert_allclose(there, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("cluster", "workers", "in_processes"), [(None, 2, True), (None, 9, False), ("tcp://a:1", 9, True)]
)
def test_a_worker_with_a_gpu_decodes_in_processes_if_all_its_shards_together_are_many_images(
    small, base, backbone, tmp_path, monkeypatch, cluster, workers, in_processes
):
    settings = Extract(engine="eager", runner="dask", cluster=cluster, workers=workers)
    todo = planning.plan(backbone, settings, small.images, tmp_path)
    of_shard = len(small.manifest) // len(todo.missing)
    job = shard_jobs.job_of(todo, settings, small.images, small_backbone(base), tmp_path)
    chosen, unrounded = [], FeatureExtractor.unrounded
    monkeypatch.setattr(processes, "FROM_IMAGES", len(small.manifest) // 4)
    monkeypatch.setattr(processes, "FROM_CORES", 1)
    monkeypatch.setattr(shard_jobs, "_ready", lambda job: (backbone, engine_of(backbone, on_gpu=True)))
    monkeypatch.setattr(
        FeatureExtractor, "unrounded",
        lambda extractor, parts, decode, threads, way: (chosen.append(way), unrounded(extractor, parts, decode, 1))[1],
    )  # fmt: skip
    assert of_shard < processes.FROM_IMAGES
    shard_jobs.extract_shard(job, shard_jobs.name_of(todo.missing[0]))
    assert chosen == [in_processes]

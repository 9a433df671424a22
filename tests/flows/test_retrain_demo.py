"""The demo of retraining tells its story: good images are promoted, images with random labels are rejected."""

import re
import subprocess
import sys

import pytest

from tests.imports import ROOT


@pytest.mark.slow  # two minutes
@pytest.mark.timeout(900)
def test_good_images_of_a_new_domain_are_promoted_and_random_labels_are_rejected():
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.retrain_demo"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    outcomes = re.findall(r"^(Promoted|Rejected|Undecided): ", done.stdout, re.MULTILINE)
    assert outcomes == ["Promoted", "Rejected"], done.stdout

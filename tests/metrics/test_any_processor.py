"""What the accuracy tests promise holds under a poor BLAS and under ATen's plainest kernels."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch

from tests.helpers.blas import FourAccumulators

ROOT = Path(__file__).parents[2]


def test_the_poor_blas_is_as_inexact_as_one_that_was_measured():
    values = torch.randn(1 << 18, generator=torch.Generator().manual_seed(0))
    with FourAccumulators():
        dot, at = float(torch.dot(values, values)), float(values @ values)
    exact = float(values.double().square().sum())
    assert dot == at
    assert 1e-7 < abs(dot / exact - 1) < 1e-4


def test_the_poor_blas_multiplies_matrices():
    a, b = torch.randn(5, 7, dtype=torch.float64), torch.randn(7, 3, dtype=torch.float64)
    with FourAccumulators():
        products = a @ b, torch.mv(a, b[:, 0]), b[:, 0] @ b
    expected = a.numpy() @ b.numpy(), a.numpy() @ b[:, 0].numpy(), b[:, 0].numpy() @ b.numpy()
    for product, wanted in zip(products, expected, strict=True):
        np.testing.assert_allclose(product.numpy(), wanted, rtol=1e-12)


def test_the_accuracy_tests_pass_with_atens_plainest_kernels():
    environment = dict(os.environ, ATEN_CPU_CAPABILITY="default")
    environment.pop("PYTEST_XDIST_WORKER", None)
    check = "import torch; print(torch.backends.cpu.get_cpu_capability())"
    said = subprocess.run(
        [sys.executable, "-c", check], env=environment, capture_output=True, text=True, check=True
    )
    assert said.stdout.strip() == "DEFAULT"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", "-p", "no:cacheprovider"]
    command += ["-m", "accuracy", "-k", "machine", "tests/metrics"]
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout[-5000:] + run.stderr[-2000:]

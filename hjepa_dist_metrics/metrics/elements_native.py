"""Element statistics on the host by a compiled kernel, for those who ask for it: half of torch's own time.

`elements.c`, 100 lines without dependencies, is compiled by the machine's C compiler (`CC`, cc, gcc or clang)
at its first use, which takes less than a second, and kept in `~/.cache/hjepa_dist_metrics`. Starting a
compiler is nothing that a training process should do unasked, so that this is never done by default. Where
there is no compiler, or its product does not give what torch gives, the host's own kernels go on; one
message says why.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import functools
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from hjepa_dist_metrics.metrics import elements_host
from hjepa_dist_metrics.metrics.elements import BINS, Elements, ElementStats
from hjepa_dist_metrics.metrics.norms import BLOCK

Kernel = Callable[[int, int, int, int, "int | None"], None]

logger = logging.getLogger(__name__)

_SOURCE = Path(__file__).with_name("elements.c")
# Sums may be reordered, for vectors; NaN and infinity keep their meaning.
_FLAGS = (
    "-O3",
    "-std=gnu11",
    "-shared",
    "-fPIC",
    "-fassociative-math",
    "-fno-signed-zeros",
    "-fno-trapping-math",
)
_COMPILE_SECONDS = 60
_LARGEST = 1 << 31  # elements of one call: its counters are of 32 bits


def read(
    tensors: Sequence[Tensor], columns: Sequence[int], size: int, counting: bool, kernel: Kernel
) -> Elements:
    """Return the statistics of each tensor, and the counts by column; see `elements.read_elements`."""
    counts = torch.zeros((size, BINS), dtype=torch.int64, device="cpu") if counting else None
    sums = torch.zeros(
        (len(tensors), 5), dtype=torch.float64, device="cpu"
    )  # abs sum, sum, squares, zeros, nonfinite
    extremes = torch.tensor([[0, -1]], dtype=torch.int32, device="cpu").repeat(
        len(tensors), 1
    )  # -1 is the largest uint32
    for i, tensor in enumerate(tensors):
        row = None if counts is None else counts[columns[i]].data_ptr()
        for block in _single(tensor):
            kernel(block.data_ptr(), block.numel(), sums[i].data_ptr(), extremes[i].data_ptr(), row)
    numels = torch.tensor([tensor.numel() for tensor in tensors], dtype=torch.float64, device="cpu")
    largest, smallest = extremes.view(torch.float32).to(torch.float64).unbind(1)
    empty, bad = numels == 0, largest.isnan()
    each = ElementStats(
        torch.cat([numels[None], sums.T]),
        torch.where(empty, float("-inf"), largest),
        torch.where(empty, float("inf"), torch.where(bad, largest, smallest)),
    )
    return Elements(each, counts)


def _single(tensor: Tensor) -> Sequence[Tensor]:
    """Return a tensor's elements as float32, in contiguous blocks; half precision is widened in the cache."""
    flat = tensor.reshape(-1).contiguous()
    if flat.dtype == torch.float32:
        return torch.split(flat, _LARGEST)
    return [block.to(torch.float32) for block in torch.split(flat, BLOCK)]


@functools.cache
def kernel() -> Kernel | None:
    """Return the compiled kernel, made at the first call; None, and a message, where there is none."""
    try:
        found = _load(_compiled())
        _require_right(found)
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        logger.warning("gradients are read by torch's kernels: no compiled one, %s", _reason(error))
        return None
    return found


def _compiled() -> Path:
    """Return the compiled library, from the cache or newly made."""
    compiler = _compiler()
    key = "\0".join([_SOURCE.read_text(), *_FLAGS, compiler, platform.machine()])
    folder = _folder()
    library = folder / f"elements-{hashlib.sha256(key.encode()).hexdigest()[:16]}.so"
    if not library.exists():
        with tempfile.TemporaryDirectory(dir=folder) as scratch:  # many ranks may come at once
            made = Path(scratch) / library.name
            command = [compiler, *_FLAGS, "-o", str(made), str(_SOURCE)]
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=_COMPILE_SECONDS)
            made.replace(library)
    return library


def _folder() -> Path:
    """Return the user's cache, or, where it cannot be written, a folder that goes with the process."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hjepa_dist_metrics"
    with contextlib.suppress(OSError):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if os.access(folder, os.W_OK):
        return folder
    own = tempfile.mkdtemp(prefix="hjepa_dist_metrics-")
    atexit.register(shutil.rmtree, own, ignore_errors=True)
    return Path(own)


def _compiler() -> str:
    names = [os.environ.get("CC", ""), "cc", "gcc", "clang"]
    found = next((path for name in names if name and (path := shutil.which(name))), None)
    if found is None:
        raise RuntimeError("there is no C compiler")
    return found


def _load(library: Path) -> Kernel:
    function = ctypes.CDLL(str(library)).hjepa_read_elements
    function.argtypes = [ctypes.c_void_p, ctypes.c_int64, *[ctypes.c_void_p] * 3]
    function.restype = None
    kernel: Kernel = function
    return kernel


def _require_right(kernel: Kernel) -> None:
    """Raise RuntimeError unless the kernel gives what torch's own kernels give of awkward numbers."""
    values = torch.randn(10_007, generator=torch.Generator("cpu").manual_seed(0), device="cpu") * 1e-3
    values[:6] = torch.tensor([0.0, -0.0, 1e-40, 3e18, -1.0, 2.0], device="cpu")
    broken = torch.tensor([1.0, float("nan"), float("inf"), -float("inf"), 2.0], device="cpu")
    mine = read([values, broken], [0, 1], 2, True, kernel)
    theirs = elements_host.read([values, broken], [0, 1], 2, True)
    assert mine.counts is not None
    assert theirs.counts is not None
    same = torch.equal(mine.counts, theirs.counts)
    for name in ("sums", "largest", "smallest"):
        pair = getattr(mine.each, name), getattr(theirs.each, name)
        same = same and torch.allclose(*pair, rtol=1e-5, atol=1e-6, equal_nan=True)
    if not same:
        raise RuntimeError("its results are not torch's")


def _reason(error: Exception) -> str:
    said = getattr(error, "stderr", None)
    return f"{error}: {said.strip()}" if said else str(error)

"""Trace a model's graph for TensorBoard, leaving the model and the random state as they were."""

from __future__ import annotations

import contextlib
import io
import warnings
from typing import Any

import torch
from torch import nn

from hjepa_dist_metrics.errors import MetricsError
from hjepa_dist_metrics.parallel import unwrap
from hjepa_dist_metrics.values import Graph


def trace_graph(wrapped: nn.Module, inputs: Any) -> Graph:
    """Return the graph of one forward pass on `inputs`, a tensor or a tuple of arguments.

    The pass runs in evaluation mode, without gradients and with a random state of its own, on the model
    inside DistributedDataParallel and torch.compile. Raises MetricsError for a model that torch.jit.trace
    cannot follow.
    """
    model = unwrap(wrapped)
    try:
        from torch.utils.tensorboard._pytorch_graph import graph
    except ImportError as error:
        raise MetricsError(
            f"a model's graph needs tensorboard (pip install 'tensorboard>=2.21'): {error}"
        ) from error
    modes = {module: module.training for module in model.modules()}
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    try:
        model.eval()
        with torch.no_grad(), torch.random.fork_rng(devices=_cuda_devices(model)):
            graph_def, metadata = _traced(graph, model, inputs)
    finally:
        for module, mode in modes.items():
            module.training = mode
        with torch.no_grad():
            for name, buffer in model.named_buffers():
                buffer.copy_(buffers[name])
    return Graph(graph_def.SerializeToString(), metadata.SerializeToString())


def _traced(graph: Any, model: nn.Module, inputs: Any) -> Any:
    try:
        # The tracer's doubts about control flow are left out, the graph is a picture; so is what it prints
        # before it raises.
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            return graph(model, inputs)
    except Exception as error:
        first = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise MetricsError(f"the graph of {type(model).__name__} cannot be traced: {first}") from error


def _cuda_devices(model: nn.Module) -> list[int]:
    devices = {p.device for p in model.parameters()}
    return [device.index for device in devices if device.type == "cuda" and device.index is not None]

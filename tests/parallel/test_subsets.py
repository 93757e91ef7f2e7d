"""Metrics over some of the ranks: process groups, device meshes, and ranks outside."""

from __future__ import annotations

import warnings

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.torch_version import TorchVersion

from hjepa_dist_metrics import ConfigError, MetricCollection, ProcessContext, WeightedMean
from tests.helpers.processes import run_disposable


def mean_of_ranks(context: ProcessContext) -> dict[str, float]:
    collection = MetricCollection({"m": WeightedMean("m")}, context=context, sync_timeout=20)
    collection["m"].update(float(dist.get_rank()), 1)
    values = {tag: float(value) for tag, value in collection.compute().items()}
    assert values == {tag: float(v) for tag, v in collection.compute_async().result(20).items()}
    return values


def odd_ranks():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        context = ProcessContext.current(dist.new_group([1, 3]))
        saved = MetricCollection({"m": WeightedMean("m")}, context=context)
        saved.load_state_dict(saved.state_dict())
        return mean_of_ranks(context), context.is_member, context.is_main, context.rank, context.world_size


def test_a_group_of_some_ranks_and_ranks_outside(gloo):
    outside = ({}, False, False, 0, 1)
    inside = [({"m": 2.0}, True, True, 0, 2), ({"m": 2.0}, True, False, 1, 2)]
    assert gloo(4).run(odd_ranks) == [outside, inside[0], outside, inside[1]]


def uneven_groups(rank: int):
    """Ranks that belong to different numbers of groups still find each other."""
    group = dist.new_group([1, 3], use_local_synchronization=True) if rank in (1, 3) else None
    first = {} if group is None else mean_of_ranks(ProcessContext.current(group))
    return first, mean_of_ranks(ProcessContext.current())


def test_ranks_with_different_numbers_of_groups():
    results = run_disposable(4, uneven_groups)
    assert results == {r: ({} if r % 2 == 0 else {"m": 2.0}, {"m": 1.5}) for r in range(4)}


def one_more_group(rank: int):
    if rank in (1, 3):
        dist.new_group([1, 3], use_local_synchronization=True)
    group = dist.new_group()
    return mean_of_ranks(ProcessContext.current(group))


def test_a_group_that_is_made_after_different_numbers_of_groups():
    """torch counts groups to name them: from 2.14 on, ranks that have counted differently never meet."""
    if torch.__version__ >= TorchVersion("2.14"):
        with pytest.raises(AssertionError, match="did not answer"):
            run_disposable(4, one_more_group, timeout=20.0)
        pytest.skip(
            f"torch {torch.__version__}: new_group() hangs where ranks have made different numbers of groups"
        )
    assert run_disposable(4, one_more_group) == {r: {"m": 1.5} for r in range(4)}


def on_mesh(names, dims):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=names)
        context = ProcessContext.current(mesh, dims=dims)
        again = ProcessContext.current(mesh, dims=dims)
        return mean_of_ranks(context)["m"], mean_of_ranks(again)["m"], context.world_size, context.is_main


def test_tensor_parallel_replicas_count_once(gloo):
    # Ranks 0 and 1 are one replica's tensor-parallel pair, so that 0 merges with 2 and 1 with 3.
    results = gloo(4).run(on_mesh, ("dp", "tp"), ("dp",))
    assert results == [(1.0, 1.0, 2, True), (2.0, 2.0, 2, False), (1.0, 1.0, 2, False), (2.0, 2.0, 2, False)]


@pytest.mark.parametrize("dims", [("replicate", "shard"), ("shard", "replicate"), None])
def test_hybrid_sharding_merges_over_both_dimensions(gloo, dims):
    results = gloo(4).run(on_mesh, ("replicate", "shard"), dims)
    assert results == [(1.5, 1.5, 4, rank == 0) for rank in range(4)]


def wrong_dims():
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
    texts = []
    for group, dims in ((mesh, ("data",)), (mesh, ()), (None, ("dp",))):
        with pytest.raises(ConfigError) as caught:
            ProcessContext.current(group, dims=dims)
        texts.append(str(caught.value))
    return texts


def test_wrong_dimensions_say_which_there_are(gloo):
    texts = gloo(4).run(wrong_dims)[0]
    assert texts[0] == "the mesh has the dimensions ['dp', 'tp'], got dims=['data']"
    assert texts[1] == "the mesh has the dimensions ['dp', 'tp'], got dims=[]"
    assert texts[2] == "dims=['dp'] need a DeviceMesh as the group, got NoneType"


def test_a_process_on_its_own_is_a_world_of_one():
    context = ProcessContext.current()
    assert (context.rank, context.world_size, context.is_main, context.is_member) == (0, 1, True, True)

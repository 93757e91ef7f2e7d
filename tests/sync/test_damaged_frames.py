"""A bit that flips on the way is an error that names the sender, whichever bit of a header it is."""

import threading

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st

from hjepa_dist_metrics import MetricCollection, ProcessContext, RankFailureError, WeightedMean
from hjepa_dist_metrics.parallel.transport import MemoryChannel, MemoryWorld
from hjepa_dist_metrics.sync.header import SIZE, WORDS, DamagedHeaderError, Header


class FlippingChannel(MemoryChannel):
    """Flip one bit of the message of a given number that a rank sends."""

    def __init__(self, world, rank, message, bit):
        super().__init__(world, rank)
        self._left, self._bit = message, bit

    def exchange(self, peer, sent, size):
        if sent is not None:
            if self._left == 0:
                sent = np.array(sent)
                sent[self._bit // 8] ^= np.uint8(1 << self._bit % 8)
            self._left -= 1
        return super().exchange(peer, sent, size)


def outcomes(world_size, flipped_rank, bit, message=0):
    """Return each rank's result, or its error, of a sync in which a rank's message has a wrong bit."""
    world, results = MemoryWorld(world_size, timeout=0.5), [None] * world_size

    def run(rank):
        channel = MemoryChannel(world, rank)
        if rank == flipped_rank:
            channel = FlippingChannel(world, rank, message, bit)
        context = ProcessContext(rank, world_size, torch.device("cpu"), is_main=rank == 0, channel=channel)
        collection = MetricCollection({"m": WeightedMean("x")}, context, sync_timeout=1.0)
        collection["m"].update(torch.tensor(float(rank)))
        try:
            results[rank] = float(collection.compute()["x"])
        except Exception as error:
            results[rank] = error

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(world_size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def test_every_flipped_bit_of_a_header_is_a_clear_error():
    for bit in range(8 * SIZE):
        of_receiver, of_sender = outcomes(2, flipped_rank=1, bit=bit)
        assert isinstance(of_receiver, RankFailureError), (bit, of_receiver)
        assert "rank 1 sent a frame that came damaged" in str(of_receiver)
        assert of_receiver.ranks == (1,)
        assert of_sender == 0.5, bit  # it got what rank 0 sent, and the right number


@pytest.mark.parametrize("world_size", [3, 4, 5])
def test_the_ranks_that_come_later_know_of_it(world_size):
    for rank in range(world_size):
        got = outcomes(world_size, rank, bit=77)
        mean = (world_size - 1) / 2
        assert all(isinstance(result, RankFailureError) or result == mean for result in got), got
        damaged = [result for result in got if isinstance(result, RankFailureError)]
        assert damaged
        assert all(f"rank {rank} sent a frame that came damaged" in str(error) for error in damaged)


@given(st.binary(min_size=SIZE, max_size=SIZE))
def test_no_bytes_pass_for_a_header(data):
    with pytest.raises(DamagedHeaderError, match="does not have its checksum"):
        Header.read(memoryview(data))


@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=WORDS, max_size=WORDS))
def test_a_header_reads_as_it_was_written(words):
    frame = np.zeros(SIZE, np.uint8)
    Header(tuple(words)).write(frame.data)
    assert tuple(Header.read(frame.data).words) == tuple(words)

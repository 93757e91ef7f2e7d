"""The process that draws a run's figures: pictures in, pixels out, at the lowest priority, without torch.

It reads requests from its standard input and answers on its standard output, each a length and a pickle. It
ends where its input does: with the process that started it, however that ends.
"""

from __future__ import annotations

import os
import pickle
import signal
import struct
import sys
from collections.abc import Callable, Mapping
from typing import BinaryIO

from hjepa_dist_metrics.errors import MissingExtraError
from hjepa_dist_metrics.figures.canvas import CARD_DPI, to_image
from hjepa_dist_metrics.values import Image

# What makes a figure: a function of this package with its arguments, NumPy arrays among them.
Sketch = Callable[[], object]
# A picture, or why there is none; alone, why there is no picture at all.
Answer = Mapping[str, Image | str] | str

_LENGTH = struct.Struct(">Q")
_LOWEST_PRIORITY = 19


def command() -> list[str]:
    """Return the command that starts this process: the same Python, with the same places to import from."""
    code = f"import sys; sys.path[:] = sys.argv[1].split('\\n'); from {__name__} import serve; serve()"
    return [sys.executable, "-I", "-c", code, "\n".join(sys.path)]


def send(stream: BinaryIO, message: object) -> None:
    """Write one message."""
    data = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
    stream.write(_LENGTH.pack(len(data)))
    stream.write(data)
    stream.flush()


def receive(stream: BinaryIO) -> object:
    """Read one message of a process of ours; EOFError where there is none."""
    head = stream.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        raise EOFError("the other process has ended")
    (length,) = _LENGTH.unpack(head)
    data = stream.read(length)
    if len(data) < length:
        raise EOFError("the other process has ended in the middle of a message")
    return pickle.loads(data)


def serve() -> None:
    """Draw what is asked for until the input ends."""
    # Told to stop, the process that asked still wants its pictures; it ends this one by ending.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    if hasattr(os, "nice"):
        os.nice(_LOWEST_PRIORITY)
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not run into the answers
    requests = sys.stdin.buffer
    try:
        while True:
            send(answers, draw_all(receive(requests)))  # type: ignore[arg-type]
    except (EOFError, BrokenPipeError):
        os._exit(0)  # without a word about pipes that the other end has closed


def draw_all(sketches: Mapping[str, bytes]) -> Answer:
    """Return the pictures of pickled sketches by tag; what goes wrong in one concerns none of the others."""
    pictures: dict[str, Image | str] = {}
    for tag, sketch in sketches.items():
        try:
            pictures[tag] = to_image(pickle.loads(sketch)(), CARD_DPI)
        except MissingExtraError as error:
            return str(error)
        except Exception as error:
            pictures[tag] = f"{type(error).__name__}: {error}"
    return pictures

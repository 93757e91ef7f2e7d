"""Places that values go to: event files, JSON lines, Weights & Biases, memory; in a group, or on a thread.

TensorBoard and Weights & Biases are imported when their sink is opened.
"""

from hjepa_dist_metrics.sinks.background import BackgroundSink as BackgroundSink
from hjepa_dist_metrics.sinks.base import HParam as HParam, RunSink as RunSink, Sink as Sink
from hjepa_dist_metrics.sinks.compose import SinkGroup as SinkGroup
from hjepa_dist_metrics.sinks.jsonl import JsonlSink as JsonlSink, read_jsonl as read_jsonl
from hjepa_dist_metrics.sinks.memory import MemorySink as MemorySink
from hjepa_dist_metrics.sinks.runs import (
    claim_run_name as claim_run_name,
    jsonl_path as jsonl_path,
    last_logged_step as last_logged_step,
    tensorboard_dir as tensorboard_dir,
    wandb_dir as wandb_dir,
)
from hjepa_dist_metrics.sinks.tensorboard import TensorBoardSink as TensorBoardSink
from hjepa_dist_metrics.sinks.wandb import WandbSink as WandbSink

"""Places that values go to: event files, JSON lines, trackers, a Prometheus endpoint, a webhook, memory.

`SinkGroup` writes to several, `BackgroundSink` on threads of its own. Packages that a sink needs are imported
when it is opened.
"""

from hjepa_dist_metrics.sinks.background import BackgroundSink as BackgroundSink
from hjepa_dist_metrics.sinks.base import HParam as HParam, RunSink as RunSink, Sink as Sink
from hjepa_dist_metrics.sinks.compose import SinkGroup as SinkGroup
from hjepa_dist_metrics.sinks.jsonl import JsonlSink as JsonlSink, read_jsonl as read_jsonl
from hjepa_dist_metrics.sinks.lanes import Retrying as Retrying
from hjepa_dist_metrics.sinks.memory import MemorySink as MemorySink
from hjepa_dist_metrics.sinks.mlflow import MlflowSink as MlflowSink
from hjepa_dist_metrics.sinks.prometheus import PrometheusSink as PrometheusSink
from hjepa_dist_metrics.sinks.runs import (
    claim_run_name as claim_run_name,
    jsonl_path as jsonl_path,
    last_logged_step as last_logged_step,
    mlflow_dir as mlflow_dir,
    tensorboard_dir as tensorboard_dir,
    wandb_dir as wandb_dir,
)
from hjepa_dist_metrics.sinks.tensorboard import TensorBoardSink as TensorBoardSink
from hjepa_dist_metrics.sinks.trackio import TrackioSink as TrackioSink
from hjepa_dist_metrics.sinks.wandb import WandbSink as WandbSink
from hjepa_dist_metrics.sinks.webhook import WebhookSink as WebhookSink

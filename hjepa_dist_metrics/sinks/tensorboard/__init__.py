"""TensorBoard event files: the sink, values as protocol buffers, the projector's files, PNG pictures."""

from hjepa_dist_metrics.sinks.tensorboard.sink import TensorBoardSink as TensorBoardSink

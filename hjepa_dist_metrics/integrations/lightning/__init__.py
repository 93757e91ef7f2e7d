"""Lightning: measure what a `lightning.pytorch.Trainer` trains, and write what modules log.

trainer = Trainer(callbacks=[MetricsCallback()], logger=MetricsLogger("run", "results/logs"))
trainer.fit(module, loader)
"""

from hjepa_dist_metrics.integrations.lightning.callback import MetricsCallback as MetricsCallback
from hjepa_dist_metrics.integrations.lightning.logger import MetricsLogger as MetricsLogger
from hjepa_dist_metrics.integrations.lightning.logger_sink import LoggerSink as LoggerSink

"""Hugging Face: measure what a `transformers.Trainer`, or a trainer built on it, trains.

trainer = Trainer(model, args, train_dataset=data, callbacks=[MetricsCallback()])
trainer.train()
"""

from hjepa_dist_metrics.integrations.huggingface.callback import MetricsCallback as MetricsCallback

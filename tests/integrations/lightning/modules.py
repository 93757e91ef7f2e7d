"""Small LightningModules: a JEPA, a classifier, two networks that step by hand."""

from __future__ import annotations

import copy
import warnings

import torch
from torch import nn

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from lightning.pytorch import LightningModule, Trainer

DIM = 6


class JEPA(LightningModule):
    """A context encoder predicts what a teacher, its moving average, says of the masked positions."""

    def __init__(self, momentum=0.9):
        super().__init__()
        torch.manual_seed(0)
        self.context_encoder, self.predictor = nn.Linear(DIM, DIM), nn.Linear(DIM, DIM)
        self.target_encoder = copy.deepcopy(self.context_encoder).requires_grad_(False)
        self.momentum = momentum
        self.save_hyperparameters()

    def training_step(self, batch, batch_idx):
        mask = batch["mask"]
        targets = self.target_encoder(batch["tokens"])
        predictions = self.predictor(self.context_encoder(batch["tokens"] * ~mask[..., None]))
        loss = (predictions - targets)[mask].square().mean()
        self.log("train_error", loss)
        given = {"mask": mask, "features": targets, "predictions": predictions, "targets": targets}
        return {"loss": loss, **given, "prediction_valid": [mask], "momentum": self.momentum}

    def on_before_zero_grad(self, optimizer):
        with torch.no_grad():
            pairs = zip(self.target_encoder.parameters(), self.context_encoder.parameters(), strict=True)
            for target, context in pairs:
                target.lerp_(context, 1 - self.momentum)

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.context_encoder(batch["tokens"]).square().mean())

    def configure_optimizers(self):
        return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], lr=0.1)


class Classifier(LightningModule):
    """A network whose batches may have any size."""

    def __init__(self, lr=0.1):
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head = nn.Linear(DIM, DIM), nn.Linear(DIM, 3)
        self.lr = lr

    def loss(self, batch):
        inputs, labels = batch
        return nn.functional.cross_entropy(self.head(self.body(inputs).tanh()), labels)

    def training_step(self, batch, batch_idx):
        loss = self.loss(batch)
        self.log("error", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.loss(batch))
        self.log("largest", batch[0].max(), reduce_fx="max")

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=self.lr)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


class ByHand(Classifier):
    """The classifier under manual optimization, its two layers with an optimizer each."""

    def __init__(self, clip=0.1):
        super().__init__()
        self.automatic_optimization = False
        self.clip = clip

    def training_step(self, batch, batch_idx):
        optimizers = self.optimizers()
        loss = self.loss(batch)
        self.manual_backward(loss)
        for optimizer in optimizers:
            if self.clip:
                self.clip_gradients(optimizer, gradient_clip_val=self.clip, gradient_clip_algorithm="norm")
            optimizer.step()
        for optimizer in optimizers:
            optimizer.zero_grad()

    def configure_optimizers(self):
        return [torch.optim.SGD(layer.parameters(), lr=0.1) for layer in (self.body, self.head)]


def samples(count, seed=1):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(count, DIM, generator=generator)
    return [(row, i % 3) for i, row in enumerate(inputs)]


def masked(count, seed=1):
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randn(count, 5, DIM, generator=generator)
    masks = [torch.randperm(5, generator=generator) < 2 for _ in range(count)]
    return [{"tokens": row, "mask": mask} for row, mask in zip(tokens, masks, strict=True)]


def loader(data, size=3):
    return torch.utils.data.DataLoader(data, batch_size=size)


def trainer(directory, callbacks=(), **changed):
    given = {
        "accelerator": "cpu",
        "devices": 1,
        "max_epochs": 1,
        "default_root_dir": str(directory),
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "log_every_n_steps": 1,
    }
    return Trainer(**{**given, **changed}, callbacks=list(callbacks))


def config(directory, **changed):
    return {"experiment_name": "run", "log_dir": str(directory), "cadence": {"representations": 1}, **changed}

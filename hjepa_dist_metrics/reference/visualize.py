"""The visualization command: masks, a trained model's predictions and attention, and training logs."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

import hjepa_dist_metrics.figures as fig
from hjepa_dist_metrics import ConfigError, MetricsError, ProcessContext
from hjepa_dist_metrics.figures.training.series import Runs
from hjepa_dist_metrics.reference import checkpoint
from hjepa_dist_metrics.reference.arguments import parse
from hjepa_dist_metrics.reference.data import ImageItem, stack_images
from hjepa_dist_metrics.reference.data.image_folder import FolderImages
from hjepa_dist_metrics.reference.hjepa.masking import MultiBlockMaskGenerator
from hjepa_dist_metrics.reference.hjepa.workload import HJEPAWorkload
from hjepa_dist_metrics.resources import config_path

EXIT_FAILED, EXIT_BAD_INPUT = 1, 2
_MASK_GRID, _FEW, _MANY = (14, 14), 16, 256

# A file name and what draws it there.
Job = tuple[str, Callable[..., Any]]


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw what is asked for; 1 where a figure failed, 2 for bad input."""
    options = _parser().parse_args(arguments)
    try:
        jobs = list(_jobs(options))
    except MetricsError as error:
        print(f"visualize.py: error: {' '.join(str(error).split())}", file=sys.stderr)
        return EXIT_BAD_INPUT
    return draw(jobs, Path(options.output_dir), options.dpi)


def draw(jobs: Sequence[Job], output_dir: Path, dpi: int) -> int:
    """Draw every job into its file, with a line of progress each; one that fails does not stop the rest."""
    failed = 0
    for number, (name, make) in enumerate(jobs, start=1):
        path = output_dir / name
        try:
            make(save_path=path, dpi=dpi)
            print(f"[{number}/{len(jobs)}] {path}", flush=True)
        except Exception as error:
            failed += 1
            reason = " ".join(str(error).split())
            print(f"[{number}/{len(jobs)}] {path} failed: {type(error).__name__}: {reason}", file=sys.stderr)
    if failed:
        print(f"visualize.py: {failed} of {len(jobs)} figures failed", file=sys.stderr)
    return EXIT_FAILED if failed else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="visualize.py",
        description="Draw masks, a trained model's predictions and attention, and training logs.",
        epilog="exit codes: 0 all drawn; 1 a figure failed; 2 bad input",
    )
    for name, what in (
        ("masks", "random masks and their statistics; needs no model"),
        ("predictions", "predictions, features and neighbours of a checkpoint"),
        ("attention", "attention of a checkpoint"),
        ("training", "curves of the runs in --log-dir"),
        ("all", "masks, predictions and attention, and with --log-dir training"),
    ):
        parser.add_argument(f"--visualize-{name}", action="store_true", help=what)
    parser.add_argument("--num-samples", type=int, default=6, help="masks to draw (6)")
    parser.add_argument("--checkpoint", help="checkpoint that launch/train.py wrote, or a directory of them")
    parser.add_argument("--config", help="configuration that it was trained with (configs/default.yaml)")
    parser.add_argument("--image", help="image to look at; by default a validation image")
    parser.add_argument("--log-dir", help="log directory, event file, .jsonl, .json or NumPy file")
    parser.add_argument("--output-dir", default="results/visualizations", help="where the files go")
    parser.add_argument("--dpi", type=int, default=150, help="dots an inch (150)")
    return parser


def _jobs(options: argparse.Namespace) -> Iterator[Job]:
    everything = options.visualize_all
    kinds = ("masks", "predictions", "attention", "training")
    wanted = {kind for kind in kinds if getattr(options, f"visualize_{kind}")}
    if everything:
        wanted |= {"masks", "predictions", "attention"} | ({"training"} if options.log_dir else set())
    if not wanted:
        asked = ", ".join(f"--visualize-{kind}" for kind in (*kinds, "all"))
        raise ConfigError(f"nothing to draw: ask for {asked}")
    if "masks" in wanted:
        yield from _mask_jobs(options.num_samples)
    if wanted & {"predictions", "attention"}:
        subject = Subject(options.checkpoint, options.config, options.image)
        yield from _prediction_jobs(subject) if "predictions" in wanted else ()
        yield from _attention_jobs(subject) if "attention" in wanted else ()
    if "training" in wanted:
        if not options.log_dir:
            raise ConfigError("--visualize-training needs --log-dir")
        yield from _training_jobs(fig.load_training_logs(options.log_dir))


def _mask_jobs(count: int) -> Iterator[Job]:
    if count < 1:
        raise ConfigError(f"--num-samples is {count}; allowed: 1 or more")
    generator = MultiBlockMaskGenerator(_MASK_GRID, min_visible=20)
    drawn = generator.generate_blocks(torch.arange(max(count, _MANY)), 0)
    rows, columns = np.mgrid[0:224, 0:224] / 223
    picture = np.stack([rows, columns, 1 - rows], axis=-1)
    growing = (np.asarray(_blocks_in_order(drawn.blocks[0])), _MASK_GRID)
    uniform = np.random.default_rng(0).random((_MANY, 196)) < float(drawn.mask.float().mean())
    yield "masks_multi_block.png", partial(fig.visualize_multi_block_masking, count, generator)
    yield "masks_strategy.png", partial(fig.visualize_masking_strategy, drawn.mask[0], picture)
    yield "masks_image.png", partial(fig.visualize_masked_image, picture, drawn.mask[0])
    regions = partial(fig.visualize_context_target_regions, picture, drawn.mask[0], drawn.blocks[0])
    yield "masks_regions.png", regions
    compared: dict[str, Any] = {"multi-block": drawn.mask, "random patches": uniform}
    yield "masks_compared.png", partial(fig.compare_masking_strategies, compared)
    yield "masks_statistics.png", partial(fig.plot_masking_statistics, drawn.mask, drawn.blocks)
    yield (
        "masks_growing.gif",
        lambda save_path, dpi: fig.animate_masking_process(
            picture, growing[0], grid=growing[1], save_path=save_path
        ),
    )


def _blocks_in_order(blocks: torch.Tensor) -> list[Any]:
    """Return the masks of the first block, of the first two, and so on."""
    masks, mask = [], np.zeros(_MASK_GRID, dtype=bool)
    for top, left, height, width in blocks.tolist():
        mask[top : top + height, left : left + width] = True
        masks.append(mask.copy())
    return masks


class Subject:
    """Hold a trained reference model and the images to show it."""

    def __init__(self, path: str | None, config: str | None, image: str | None) -> None:
        if path is None:
            raise ConfigError("predictions and attention need --checkpoint")
        where = Path(path)
        found = checkpoint.newest(where) if where.is_dir() else where
        if found is None or not found.is_file():
            raise ConfigError(f"there is no checkpoint at {where}")
        run = parse(["--config", config or str(config_path("default.yaml"))], "visualize.py")
        if run.workload != "hjepa":
            raise ConfigError(f"the visualization command draws the workload 'hjepa', got {run.workload!r}")
        self.work = HJEPAWorkload(run.model, run.data, run.training, ProcessContext.current())
        self.model = self.work.model.eval()
        state = checkpoint.load(found, torch.device("cpu"))
        try:
            self.model.load_state_dict(state["model"])
        except (KeyError, RuntimeError) as error:
            raise ConfigError(f"{found} does not fit the model of the configuration: {error}") from error
        self.image = self._read(image)
        self._first = 1 if image is None else 0  # no image twice

    def _read(self, path: str | None) -> torch.Tensor:
        """Return the image [C, H, W] as the model takes it: the file's, or the first validation image."""
        splits = self.work.splits
        if path is None:
            return splits.val[0]["image"]
        if not Path(path).is_file():
            raise ConfigError(f"there is no image {path}")
        item: ImageItem = FolderImages([Path(path)], torch.tensor([-1]), splits.image_size)[0]
        image = item["image"]
        if splits.channels == 3:
            return image
        # The digits are bright ink on dark ground, standardised: match mean and spread of what the model saw.
        grey = image.mean(dim=0, keepdim=True)
        seen = stack_images(splits.val, torch.arange(min(len(splits.val), _FEW)))
        return (grey - grey.mean()) / grey.std().clamp(min=1e-6) * seen.std() + seen.mean()

    @cached_property
    def batch(self) -> torch.Tensor:
        """Return the image and validation images, [B, C, H, W]."""
        others = torch.arange(self._first, min(len(self.work.splits.val), _MANY))
        return torch.cat([self.image[None], stack_images(self.work.splits.val, others)])

    @cached_property
    def labels(self) -> list[int]:
        """Return the classes of `batch`, -1 for the image itself."""
        return [-1, *self.work.splits.val.labels[self._first :][: len(self.batch) - 1].tolist()]

    @cached_property
    def output(self) -> Any:
        """Return the model's output on `batch` and the masks that it was given."""
        mask = self.work.masks.generate(torch.arange(len(self.batch)), 0)
        with torch.no_grad():
            return self.model(self.batch, mask)

    @cached_property
    def targets(self) -> list[torch.Tensor]:
        """Return what the predictions were trained to match: the targets as the objective normalises them."""
        with torch.no_grad():
            return list(self.work.objective(self.output).targets)

    @cached_property
    def features(self) -> torch.Tensor:
        """Return one vector an image, [B, D]: the mean over its tokens."""
        return self.model.extract_features(self.batch).mean(dim=1)


def _prediction_jobs(subject: Subject) -> Iterator[Job]:
    def compared(save_path: Path, dpi: int) -> None:
        out = subject.output
        fig.visualize_predictions(
            out["predictions"][0],
            subject.targets[0],
            subject.batch,
            out["masks_valid"][0],
            grid=subject.model.grid,
            save_path=save_path,
            dpi=dpi,
        )

    def by_level(save_path: Path, dpi: int) -> None:
        out = subject.output
        fig.visualize_hierarchical_predictions(
            out["predictions"],
            subject.targets,
            subject.image,
            out["masks_valid"],
            grids=subject.model.level_grids,
            save_path=save_path,
            dpi=dpi,
        )

    def space(save_path: Path, dpi: int) -> None:
        fig.visualize_feature_space(subject.features, subject.labels, save_path=save_path, dpi=dpi)

    def neighbours(save_path: Path, dpi: int) -> None:
        fig.visualize_nearest_neighbors(subject.features, subject.batch, save_path=save_path, dpi=dpi)

    def distribution(save_path: Path, dpi: int) -> None:
        fig.visualize_embedding_distribution(subject.features, save_path=save_path, dpi=dpi)

    yield "predictions.png", compared
    yield "predictions_by_level.png", by_level
    yield "features.png", space
    yield "neighbours.png", neighbours
    yield "embeddings.png", distribution


def _attention_jobs(subject: Subject) -> Iterator[Job]:
    model, image, grid = subject.model, subject.image, subject.model.grid
    yield "attention_maps.png", partial(fig.visualize_attention_maps, model, image, grid=grid)
    yield "attention_heads.png", partial(fig.visualize_multihead_attention, model, image, grid=grid)
    yield "attention_rollout.png", partial(fig.visualize_attention_rollout, model, image, grid=grid)
    yield "attention_depth.png", partial(fig.visualize_hierarchical_attention, model, image, grid=grid)
    yield "attention_patch.png", partial(fig.visualize_patch_to_patch_attention, model, image, grid=grid)


def _training_jobs(runs: Runs) -> Iterator[Job]:
    """Yield the curves, and each further figure that some run has the tags for."""
    tags = {tag for have in runs.values() for tag in have}
    yield "training_curves.png", partial(fig.plot_training_curves, runs)
    for name, make, tag in (
        ("training_levels.png", fig.plot_hierarchical_losses, "loss/h0"),
        ("training_collapse.png", fig.plot_collapse_metrics, "collapse/effective_rank"),
        ("training_probes.png", fig.plot_probes, "val/knn_accuracy"),
        ("training_momentum.png", fig.plot_ema_momentum, "train/ema_momentum"),
    ):
        if tag in tags:
            yield name, partial(make, runs)

"""The dual-head job: frames, frozen encoders, objective, its tags, and heads of one's own."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from hjepa_dist_metrics import ConfigError, FrameQuality, ProcessContext
from hjepa_dist_metrics.reference.arguments import parse
from hjepa_dist_metrics.reference.dual_head import (
    ClipEncoder,
    DataConfig,
    DualHeadWorkload,
    HandcraftedEncoder,
    Head,
    ModelConfig,
    SemanticConfig,
    load_videos,
    rgb_head,
    split_frames,
)
from hjepa_dist_metrics.reference.dual_head.video import join_patches
from hjepa_dist_metrics.reference.dual_head.workload import build
from hjepa_dist_metrics.reference.main import main
from hjepa_dist_metrics.reference.trainer import Trainer
from hjepa_dist_metrics.sinks import read_jsonl
from tests.reference.dual_head_tags import HISTOGRAMS, SCALARS

SMALL = [
    *("--workload", "dual_head", "--model.width", "8", "--model.hidden", "32"),
    *("--model.semantic.warmup_epochs", "1", "--data.frames_per_video", "10"),
    *("--data.frame_size", "[16,32]", "--data.batch_size", "32"),
    *("--training.epochs", "4", "--training.probe_every_epochs", "2", "--training.learning_rate", "0.01"),
    *("--logging.experiment_name", "small", "--logging.log_frequency", "1"),
]
SIZE = DataConfig(frames_per_video=10, frame_size=(16, 32))


def small(tmp_path, *more):
    return parse([*SMALL, "--logging.log_dir", str(tmp_path), *more])


def job(config):
    return build(config.model, config.data, config.training, ProcessContext.current())


def by_step(tmp_path):
    merged = {}
    for line in read_jsonl(tmp_path / "metrics" / "small.jsonl"):
        merged.setdefault(line["step"], {}).update(line)
    return merged


def test_the_videos_are_the_same_every_time_and_move_smoothly():
    one, other = load_videos(DataConfig()), load_videos(DataConfig())
    train, val = one["train"], one["val"]
    assert torch.equal(train.pixels, other["train"].pixels)
    assert (train.num_frames, len(train), val.num_frames, len(val)) == (64, 512, 16, 128)
    assert train.pixels.shape[1:] == (3, 24, 24)
    assert 0.0 <= float(train.pixels.min()) < 0.1
    assert 0.9 < float(train.pixels.max()) <= 1.0
    assert train.frame.bincount().tolist() == [8] * 64
    move = (train.pixels[8:16] - train.pixels[:8]).abs().mean()
    anywhere = (train.pixels[8 * 20 : 8 * 21] - train.pixels[:8]).abs().mean()
    assert 0.005 < float(move) < 0.5 * float(anywhere)
    times = {float(t) for t in train.time} & {float(t) for t in val.time}
    assert not times


def test_patches_put_together_are_the_frame():
    frames = torch.rand(4, 3, 16, 32)
    splits = split_frames([frames], val_every=2)
    patches = splits["train"].pixels[8:16].reshape(2, 4, 3, 8, 8)  # the second training frame
    whole = torch.cat([torch.cat(list(row), dim=2) for row in patches], dim=1)
    assert torch.equal(whole, frames[2])
    assert torch.equal(join_patches(splits["train"].pixels[8:16]), frames[2])
    assert torch.equal(splits["val"].pixels[0], frames[1, :, :8, :8])


@pytest.mark.parametrize(
    ("frames", "val_every", "message"),
    [
        (torch.rand(4, 3, 16, 32) * 255, 2, r"video 0: images must lie in \[0, 1\], got .* to 25"),
        (torch.rand(4, 3, 16, 32) * float("nan"), 2, r"video 0: images must lie in \[0, 1\], got nan"),
        (torch.rand(4, 1, 16, 32), 2, r"expected frames \[T, 3, H, W\], got \[4, 1, 16, 32\]"),
        (torch.rand(4, 3, 16, 32), 9, r"split 'val' is empty: data.val_every is 9, .* have \[4\] frames"),
    ],
)
def test_bad_frames_say_what_is_wrong(frames, val_every, message):
    with pytest.raises(ConfigError, match=message):
        split_frames([frames], val_every)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data.val_every", "20"], "data.val_every is 20; allowed: at most 19: the validation split of 10"),
        (["--data.val_every", "1"], "data.val_every is 1; allowed: 2 or more"),
        (["--data.frame_size", "[16,30]"], "data.frame_size is .*allowed: multiples of 16 and 32"),
        (["--data.batch_size", "1000"], "data.batch_size is 1000; allowed: at most 128"),
        (["--model.width", "7"], "model.width is 7; allowed: an even number"),
        (["--model.semantic.encoder", "clip"], "model.semantic.path is None; allowed: a folder with a CLIP"),
        (
            ["--model.semantic.encoder", "clip", "--model.semantic.path", "/nowhere"],
            "there is no such folder",
        ),
        (["--model.semantic.weigth", "1"], "nearest valid one is 'model.semantic.weight'"),
        (["--model.semantic.warmup_epochs", "-1"], "warmup_epochs is -1; allowed: 0 or more"),
    ],
)
def test_bad_settings_are_one_line(tmp_path, capsys, arguments, message):
    assert main([*SMALL, "--logging.log_dir", str(tmp_path), *arguments]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()[-1:]
    assert line.startswith("train.py: error: ")
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(line)


def test_the_handcrafted_encoder_tells_images_apart_and_knows_the_same_scene():
    splits = load_videos(DataConfig())
    encoder = HandcraftedEncoder(splits["train"].pixels)
    train = F.normalize(encoder(splits["train"].pixels), dim=1)
    assert train.shape == (512, encoder.dim)
    np.testing.assert_allclose(encoder(splits["train"].pixels).mean(0), 0.0, atol=1e-4)
    cosine = train @ train.T
    neighbours = cosine[torch.arange(504), torch.arange(504) + 8]  # the same place, the next frame
    assert float(cosine.mean().abs()) < 0.05
    assert float(neighbours.mean()) > 0.7
    assert torch.equal(encoder(splits["val"].pixels[:3]), encoder(splits["val"].pixels)[:3])


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    """A CLIP of the real architecture, tiny and with random weights, as transformers saves one."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=16,
        patch_size=8,
        projection_dim=12,
    )
    folder = tmp_path_factory.mktemp("clip")
    transformers.CLIPVisionModelWithProjection(config).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(
        json.dumps({"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4]})
    )
    return folder


def test_a_clip_from_a_folder_is_called_as_transformers_would(clip_folder):
    from transformers import CLIPVisionModelWithProjection

    encoder = ClipEncoder(str(clip_folder))
    images = torch.rand(3, 3, 16, 16)
    mean, std = (torch.tensor(v).reshape(3, 1, 1) for v in ([0.5, 0.4, 0.3], [0.2, 0.3, 0.4]))
    model = CLIPVisionModelWithProjection.from_pretrained(clip_folder)
    with torch.no_grad():
        expected = model(pixel_values=(images - mean) / std).image_embeds
    assert encoder.dim == 12
    torch.testing.assert_close(encoder(images), expected, atol=1e-5, rtol=1e-5)
    assert encoder(torch.rand(2, 3, 24, 24)).shape == (2, 12)
    assert not any(parameter.requires_grad for parameter in encoder.model.parameters())


def test_training_runs_on_a_clip(tmp_path, clip_folder):
    semantic = ["--model.semantic.encoder", "clip", "--model.semantic.path", str(clip_folder)]
    config = small(tmp_path, *semantic, "--training.max_steps", "2")
    outcome = Trainer(job(config), config.training, config.logging, ProcessContext.current()).run()
    assert -1.0 <= outcome.latest["Eval/Frame/val_clip_sim"] <= 1.0


def test_a_folder_without_a_clip_is_an_error(tmp_path):
    pytest.importorskip("transformers")
    with pytest.raises(ConfigError, match="not a CLIP"):
        ClipEncoder(str(tmp_path))


def test_the_loss_is_the_weighted_mean_over_patches_and_the_warmup_leaves_the_semantic_head_alone(tmp_path):
    workload = job(small(tmp_path))
    batch = next(iter(workload.batches(0, 0)))
    patches, model = workload.splits["train"], workload.model
    with torch.no_grad():
        outputs = model(patches.video[batch], patches.time[batch], patches.place[batch])
    pixel = float(((outputs["rgb"] - patches.pixels[batch]) ** 2).double().mean())
    target = workload.targets["clip"]["train"][batch]
    clip = float((1 - F.cosine_similarity(outputs["clip"], target)).double().mean())
    for epoch, expected in ((0, pixel), (1, pixel + 0.1 * clip)):
        model.zero_grad(set_to_none=True)
        result = workload.forward(model, batch, epoch)
        result.loss.backward()
        assert float(result.loss.detach()) == pytest.approx(expected, rel=1e-5)
        assert float(result.losses["loss"]) == pytest.approx(expected, rel=1e-5)
        norm = sum(float(p.grad.square().sum()) for p in model.parts()["clip_head"].parameters())
        assert (norm > 0) == (epoch == 1)


def test_a_run_writes_every_tag_of_the_guide_and_learns(tmp_path):
    config = small(tmp_path, "--training.epochs", "30", "--training.learning_rate", "0.02")
    outcome = Trainer(job(config), config.training, config.logging, ProcessContext.current()).run()
    assert set(SCALARS) - set(outcome.latest) == set()
    first, latest = outcome.first, outcome.latest
    assert latest["Eval/Frame/train_psnr"] > first["Eval/Frame/train_psnr"] + 3.0
    assert latest["Eval/Frame/val_psnr"] > first["Eval/Frame/val_psnr"] + 3.0
    assert latest["Eval/Frame/val_clip_sim"] > first["Eval/Frame/val_clip_sim"] + 0.1
    assert (latest["Eval/Info/num_train_frames"], latest["Eval/Info/num_train_patches"]) == (16, 128)
    assert (latest["Eval/Info/num_val_frames"], latest["Eval/Info/num_val_patches"]) == (4, 32)
    gap = latest["Eval/Frame/train_psnr"] - latest["Eval/Frame/val_psnr"]
    assert latest["Eval/Gap/psnr_gap"] == pytest.approx(gap)
    steps = by_step(tmp_path)
    epochs = [steps[step] for step in range(3, 120, 4)]  # 4 steps an epoch
    assert [line["Train/clip_loss_active"] for line in epochs] == [0.0] + [1.0] * 29
    assert [line["Train/Gradients/clip_head_norm"] > 0 for line in epochs] == [False] + [True] * 29
    assert epochs[0]["Train/Loss/clip_loss"] == epochs[0]["Train/Loss/clip_loss_weighted"] == 0.0
    assert "Train/Loss/pixel_to_clip_ratio" not in epochs[0]
    batches = [steps[step]["Train_Batch/total_loss"] for step in range(4, 8)]
    assert epochs[1]["Train/Loss/total_loss"] == pytest.approx(np.mean(batches), rel=1e-6)


def test_switching_a_head_on_is_no_loss_spike(tmp_path):
    """The total loss jumps ninefold at the end of the warm-up; without a reset this fires `loss_spike`."""
    quick = ["--training.epochs", "8", "--model.semantic.warmup_epochs", "4", "--model.semantic.weight", "1"]
    config = small(tmp_path, *quick, "--logging.alerts.patience", "1")
    outcome = Trainer(job(config), config.training, config.logging, ProcessContext.current()).run()
    steps = by_step(tmp_path)
    assert steps[16]["Train_Batch/total_loss"] > 5 * steps[15]["Train_Batch/total_loss"]
    assert [alert for alert in outcome.alerts if "loss_spike" in alert] == []


def test_tensorboard_gets_the_histograms(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = small(tmp_path, "--training.max_steps", "1")
    Trainer(job(config), config.training, config.logging, ProcessContext.current()).run()
    accumulator = EventAccumulator(str(tmp_path / "tensorboard" / "small")).Reload()
    assert set(HISTOGRAMS) <= set(accumulator.Tags()["histograms"])
    counts = [sum(accumulator.Histograms(tag)[0].histogram_value.bucket) for tag in HISTOGRAMS]
    assert counts == [16, 4, 16, 4]
    images = {tag: accumulator.Images(tag)[0] for tag in accumulator.Tags()["images"] if tag[:4] == "Eval"}
    assert {tag: (image.height, image.width) for tag, image in images.items()} == {
        f"Eval/Image/{split}_rgb": (3 * 2 * 16, 3 * 32) for split in ("train", "val")
    }


class Brightness(torch.nn.Module):
    """One number from the features."""

    def __init__(self, channels):
        super().__init__()
        self.linear = torch.nn.Linear(channels, 1)

    def forward(self, features):
        return self.linear(features.mean(dim=(2, 3)))[:, 0]


class Closeness(FrameQuality):
    """A quality of one's own: 1 - |error|, on the scale of the user's head."""

    def update(self, prediction, target, frame_ids=None, valid=None):
        super().update(1.0 - (prediction - target).abs(), frame_ids, valid)


def own_heads(splits):
    targets = {
        "light": {name: patches.pixels.mean(dim=(1, 2, 3)) for name, patches in splits.items()},
        "red": {name: patches.pixels[:, 0].mean(dim=(1, 2)) for name, patches in splits.items()},
    }
    scalar_heads = [
        Head(
            name=name,
            loss_name=name,
            module=Brightness,
            targets=target,
            distance=lambda output, goal: (output - goal).square(),
            quality=lambda split, frames, patches, name=name: Closeness(
                f"{name}_closeness",
                split,
                edges=np.linspace(0, 1, 11),
                num_frames=frames,
                patches_per_frame=patches,
            ),
            weight=0.5,
            warmup_epochs=warmup,
        )
        for (name, target), warmup in zip(targets.items(), (0, 2), strict=True)
    ]
    return [rgb_head(splits), *scalar_heads]


def test_a_users_own_three_heads_train_and_have_tags_of_their_own(tmp_path):
    config = small(tmp_path, "--logging.dashboards", "[]", "--training.learning_rate", "0.02")
    splits, context = load_videos(SIZE), ProcessContext.current()
    workload = DualHeadWorkload(
        splits, own_heads(splits), ModelConfig(width=8, hidden=32), config.data, config.training, context
    )
    outcome = Trainer(workload, config.training, config.logging, context).run()
    expected = {
        *("Train/Loss/pixel_loss", "Train/Loss/light_loss", "Train/Loss/red_loss", "Train/Loss/total_loss"),
        *("Train/Loss/light_loss_weighted", "Train/Loss/red_loss_weighted", "Train/red_loss_active"),
        *("Train/Loss/pixel_to_light_ratio", "Train/Loss/pixel_to_red_ratio", "Train/light_loss_active"),
        *(f"Train/Gradients/{name}_head_norm" for name in ("rgb", "light", "red")),
        *("Train/Gradients/rgb_to_light_ratio", "Train/Gradients/rgb_to_red_ratio"),
        *("Model/Params/light_head_mean", "Model/Params/red_head_std", "Train_Batch/light_loss"),
        *(
            "Eval/Frame/val_light_closeness",
            "Eval/Gap/red_closeness_gap",
            "Eval/Patch/train_red_closeness_std",
        ),
    }
    assert expected <= set(outcome.latest)
    assert not any("clip" in tag for tag in outcome.latest if not tag.startswith("gradient"))
    assert outcome.latest["Eval/Frame/val_light_closeness"] > outcome.first["Eval/Frame/val_light_closeness"]


def test_a_single_head_is_enough(tmp_path):
    config = small(tmp_path, "--training.max_steps", "2", "--logging.dashboards", "[]")
    splits, context = load_videos(SIZE), ProcessContext.current()
    workload = DualHeadWorkload(
        splits, [rgb_head(splits)], ModelConfig(width=8, hidden=32), config.data, config.training, context
    )
    outcome = Trainer(workload, config.training, config.logging, context).run()
    assert outcome.latest["Train/Loss/total_loss"] == outcome.latest["Train/Loss/pixel_loss"]
    assert not any("ratio" in tag for tag in outcome.latest if tag.startswith("Train/"))


def test_settings_of_the_yaml_file_are_those_of_the_code():
    config = parse(["--config", "configs/dual_head.yaml"])
    assert config.workload == "dual_head"
    assert config.model == ModelConfig()
    assert config.data == DataConfig()
    assert config.model.semantic == SemanticConfig()


def test_a_run_that_died_within_an_epoch_goes_on_to_the_same_numbers(tmp_path):
    """4 steps an epoch, a checkpoint after 6 of 8: the epoch's means cover steps from before and after."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    keep = ["--training.checkpoint_dir", str(parts / "checkpoints"), "--training.checkpoint_every_steps", "6"]
    epochs = ["--training.epochs", "2"]
    assert main([*SMALL, "--logging.log_dir", str(whole), *epochs]) == 0
    assert main([*SMALL, "--logging.log_dir", str(parts), *epochs, *keep, "--training.max_steps", "7"]) == 0
    *_, sixth, last = sorted((parts / "checkpoints").rglob("step_*.pt"))
    assert (sixth.name, last.name) == ("step_00000006.pt", "step_00000007.pt")
    last.unlink()  # as if the run had died before it was written
    assert main([*SMALL, "--logging.log_dir", str(parts), *epochs, *keep, "--training.resume", "true"]) == 0
    one, other = by_step(whole)[7], by_step(parts)[7]
    compared = {tag: one[tag] for tag in SCALARS if tag in one}
    assert {"Train/PSNR", "Train/Loss/total_loss", "Train/Gradients/total_norm"} <= set(compared)
    assert {tag: other[tag] for tag in compared} == pytest.approx(compared, rel=1e-6)

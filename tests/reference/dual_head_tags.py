"""The tags of the dual-head guide, written down from it and not from the catalog."""

SPLITS = ("train", "val")
SCALARS = [
    "Train/PSNR",
    "Train/learning_rate",
    "Train/Loss/pixel_loss",
    "Train/Loss/clip_loss",
    "Train/Loss/total_loss",
    "Train/Loss/clip_loss_weighted",
    "Train/Loss/pixel_to_clip_ratio",
    "Train/clip_loss_active",
    "Train/Gradients/total_norm",
    "Train/Gradients/rgb_head_norm",
    "Train/Gradients/clip_head_norm",
    "Train/Gradients/decoder_norm",
    "Train/Gradients/rgb_to_clip_cosine",
    "Train/Gradients/rgb_to_clip_ratio",
    "Train_Batch/PSNR",
    "Train_Batch/pixel_loss",
    "Train_Batch/clip_loss",
    "Train_Batch/total_loss",
    *(f"Model/Params/{head}_head_{name}" for head in ("rgb", "clip") for name in ("mean", "std")),
    *(f"Eval/Frame/{split}_{name}" for name in ("psnr", "clip_sim", "clip_dist") for split in SPLITS),
    *(f"Eval/PSNR_Stats/{split}_{name}" for split in SPLITS for name in ("std", "min", "max")),
    *(f"Eval/Patch/{split}_{name}_std" for name in ("psnr", "clip_sim") for split in SPLITS),
    *("Eval/Gap/psnr_gap", "Eval/Gap/clip_sim_gap"),
    *(f"Eval/Info/num_{split}_{name}" for name in ("frames", "patches") for split in SPLITS),
]
HISTOGRAMS = [
    f"Eval/Histogram/{split}_{name}_distribution" for name in ("psnr", "clip_sim") for split in SPLITS
]

"""Data that the reference workloads share."""

from hjepa_dist_metrics.reference.data.augment import random_shift as random_shift
from hjepa_dist_metrics.reference.data.digits import load_digits_splits as load_digits_splits
from hjepa_dist_metrics.reference.data.image_folder import load_image_folder as load_image_folder
from hjepa_dist_metrics.reference.data.images import (
    ImageItem as ImageItem,
    ImageSet as ImageSet,
    ImageSplits as ImageSplits,
    TensorImages as TensorImages,
    stack_images as stack_images,
)
from hjepa_dist_metrics.reference.data.sampler import GlobalBatchSampler as GlobalBatchSampler

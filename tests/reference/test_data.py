import numpy as np
import pytest
import torch
from PIL import Image

from hjepa_dist_metrics.errors import ConfigError
from hjepa_dist_metrics.reference.data import load_digits_splits, load_image_folder, stack_images
from hjepa_dist_metrics.reference.hjepa.config import DataConfig
from hjepa_dist_metrics.reference.hjepa.data import load_splits


def write_images(root, classes=("cat", "dog"), each=5, suffix=".png", size=(20, 12)):
    rng = np.random.default_rng(0)
    for name in classes:
        (root / name).mkdir(parents=True, exist_ok=True)
        for i in range(each):
            pixels = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{i}{suffix}")


def test_digits_are_split_without_overlap_and_standardised():
    from sklearn.datasets import load_digits

    splits = load_digits_splits()
    train = stack_images(splits.train, torch.arange(1400))
    val = stack_images(splits.val, torch.arange(397))
    assert train.shape == (1400, 1, 8, 8)
    assert train.dtype == torch.float32
    assert abs(float(train.mean())) < 0.01
    assert abs(float(train.std()) - 1) < 0.01
    together = (torch.cat([train, val]).flatten(1) * 0.376 + 0.305) * 16
    ours = sorted(map(tuple, together.round().int().tolist()))
    assert ours == sorted(map(tuple, load_digits().data.astype(int).tolist()))
    assert torch.equal(stack_images(load_digits_splits().val, torch.arange(397)), val)
    item = splits.train[3]
    assert item["index"] == 3
    assert item["label"] == int(splits.train.labels[3])


def test_a_folder_gives_resized_images_with_classes(tmp_path):
    write_images(tmp_path)
    splits = load_image_folder(tmp_path, (8, 6), 0.2)
    assert splits.class_names == ("cat", "dog")
    assert (len(splits.train), len(splits.val)) == (8, 2)
    item = splits.train[0]
    assert item["image"].shape == (3, 8, 6)
    assert -1 <= item["image"].min() < item["image"].max() <= 1
    again = load_image_folder(str(tmp_path), (8, 6), 0.2)
    assert again.train.paths == splits.train.paths
    assert not set(splits.train.paths) & set(splits.val.paths)
    for path, label in zip(splits.train.paths, splits.train.labels, strict=True):
        assert path.parent.name == splits.class_names[label]


def test_resizing_covers_and_crops_the_centre(tmp_path):
    pixels = np.zeros((4, 8, 3), dtype=np.uint8)
    pixels[:, 2:6] = 255
    for i in range(2):
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
    splits = load_image_folder(tmp_path, (4, 4), 0.5)
    assert splits.class_names == ()
    assert splits.train[0]["label"] == -1
    assert (splits.train[0]["image"] == 1).all()


@pytest.mark.parametrize(("suffix", "keep"), [(".png", 0.6), (".jpg", 0.6), (".bmp", 0.6), (".png", 0.0)])
def test_a_broken_file_is_named_before_training(tmp_path, suffix, keep):
    write_images(tmp_path, suffix=suffix, size=(64, 64))
    broken = tmp_path / "dog" / f"3{suffix}"
    content = broken.read_bytes()
    broken.write_bytes(content[: int(len(content) * keep)])
    with pytest.raises(ConfigError) as caught:
        load_image_folder(tmp_path, (8, 8), 0.2)
    assert str(broken) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_breaks_later_is_named(tmp_path):
    write_images(tmp_path)
    splits = load_image_folder(tmp_path, (8, 8), 0.2)
    splits.train.paths[2].write_bytes(b"gone")
    with pytest.raises(ConfigError, match=r"broken image: .*\.png"):
        splits.train[2]


def test_missing_empty_and_tiny_folders_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="is not a folder"):
        load_image_folder(tmp_path / "absent", (8, 8), 0.2)
    with pytest.raises(ConfigError, match="holds no images"):
        load_image_folder(tmp_path, (8, 8), 0.2)
    write_images(tmp_path, classes=("a",), each=1)
    with pytest.raises(ConfigError, match="too few"):
        load_image_folder(tmp_path, (8, 8), 0.2)


def test_the_data_section_chooses_the_images(tmp_path):
    assert load_splits(DataConfig()).image_size == (8, 8)
    write_images(tmp_path)
    assert load_splits(DataConfig(kind="image_folder", root=str(tmp_path))).image_size == (32, 32)
    splits = load_splits(DataConfig(kind="image_folder", root=str(tmp_path), image_size=(8, 16)))
    assert splits.train[0]["image"].shape == (3, 8, 16)

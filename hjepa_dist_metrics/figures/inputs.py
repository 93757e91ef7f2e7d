"""What a figure is given, on the host and in one shape: pictures, masks, grids, tokens."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt
from typing_extensions import TypeIs

from hjepa_dist_metrics.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

Floats: TypeAlias = npt.NDArray[np.float64]
Bools: TypeAlias = npt.NDArray[np.bool_]
ArrayLike: TypeAlias = "Tensor | npt.NDArray[Any] | Sequence[Any]"
Grid: TypeAlias = tuple[int, int]


def host(values: ArrayLike) -> Floats:
    """Return float64 on the host, of a tensor of any dtype and device, an array or nested sequences."""
    if is_tensor(values):
        return values.detach().cpu().double().numpy()
    if isinstance(values, (list, tuple)) and values and is_tensor(values[0]):
        return np.stack([host(v) for v in values])
    return np.asarray(values, dtype=np.float64)


def is_tensor(value: object) -> TypeIs[Tensor]:
    """Return whether a value is a tensor, without importing torch: what draws a run's figures has none."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def tokens(values: ArrayLike, name: str) -> Floats:
    """Return features [B, N, D]; [N, D] is one image. ConfigError, with `name`, for another shape."""
    array = host(values)
    if array.ndim == 2:
        array = array[None]
    if array.ndim != 3 or 0 in array.shape:
        raise ConfigError(f"expected {name} [N, D] or [B, N, D], got shape {list(array.shape)}")
    return array


def rows(values: ArrayLike, name: str) -> Floats:
    """Return features [n, D]; [B, N, D] becomes a row for each token. ConfigError for another shape."""
    array = host(values)
    if array.ndim == 3:
        array = array.reshape(-1, array.shape[-1])
    if array.ndim != 2 or 0 in array.shape:
        raise ConfigError(f"expected {name} [n, D] or [B, N, D] with n, D > 0, got shape {list(array.shape)}")
    return array


def picture(image: ArrayLike) -> Floats:
    """Return one picture in [0, 1], float64 [H, W, 3].

    Takes [C, H, W] or [1, C, H, W] with C of 1 or 3 (as models do), [H, W] or [H, W, 3]. Values outside
    [0, 1] are stretched to it, except bytes, which are divided by 255. ConfigError for another shape.
    """
    is_bytes = str(getattr(image, "dtype", "")) in ("torch.uint8", "uint8")
    array = host(image)
    if array.ndim == 4 and len(array) == 1:
        array = array[0]
    # Three rows of pixels or three channels? A tensor's first dimension is the channels.
    channels_first = is_tensor(image) or array.shape[-1] not in (1, 3)
    if array.ndim == 3 and array.shape[0] in (1, 3) and channels_first:
        array = array.transpose(1, 2, 0)
    if array.ndim == 2:
        array = array[:, :, None]
    if array.ndim != 3 or array.shape[-1] not in (1, 3) or 0 in array.shape:
        shape = list(host(image).shape)
        raise ConfigError(
            f"expected an image [C, H, W] with 1 or 3 channels, [H, W] or [H, W, 3], got {shape}"
        )
    if is_bytes:
        array = array / 255.0
    return np.repeat(_stretch(array), 3 // array.shape[-1], axis=-1)


def pictures(images: ArrayLike) -> list[Floats]:
    """Return the pictures of a batch [B, C, H, W] (or [B, H, W]), or of one image."""
    if isinstance(images, np.ndarray) or is_tensor(images):
        if images.ndim == 4 or (images.ndim == 3 and images.shape[0] not in (1, 3) and images.shape[-1] != 3):
            return [picture(image) for image in images]
        return [picture(images)]
    return [picture(image) for image in images]


def _stretch(array: Floats) -> Floats:
    finite = array[np.isfinite(array)]
    low, high = (finite.min(), finite.max()) if finite.size else (0.0, 1.0)
    if low < 0.0 or high > 1.0:
        array = (array - low) / max(high - low, 1e-12)
    return np.clip(np.nan_to_num(array, nan=0.0, posinf=1.0, neginf=0.0), 0.0, 1.0)


def grid_of(
    count: int, grid: Grid | None = None, size: tuple[int, int] | None = None, what: str = "mask"
) -> Grid:
    """Return (rows, columns) of `count` patches: the given grid, a square, or one in the shape of `size`.

    `size` is the picture's (height, width). ConfigError where nothing fits.
    """
    if grid is not None:
        if grid[0] * grid[1] != count:
            raise ConfigError(
                f"the {what} has {count} patches, which do not fill a grid of {grid[0]}x{grid[1]}"
            )
        return (int(grid[0]), int(grid[1]))
    height, width = size or (1, 1)
    down = int(np.sqrt(count * height / width) + 0.5)
    if down > 0 and count % down == 0 and down * width == (count // down) * height:
        return (down, count // down)
    raise ConfigError(f"cannot tell the grid of the {what}'s {count} patches: pass grid=(rows, columns)")


def one_mask(mask: ArrayLike, grid: Grid | None = None, size: tuple[int, int] | None = None) -> Bools:
    """Return one mask, bool [rows, columns], from [N], [1, N] or [rows, columns]; True is masked."""
    flags = _flags(mask)
    if flags.ndim == 2 and len(flags) > 1:
        grid_of(flags.size, grid if grid is not None else (flags.shape[0], flags.shape[1]))
        return flags.reshape(grid or flags.shape)
    flags = flags.reshape(-1)
    return flags.reshape(grid_of(flags.size, grid, size))


def many_masks(masks: ArrayLike, grid: Grid | None = None, size: tuple[int, int] | None = None) -> Bools:
    """Return masks, bool [n, rows, columns], from [n, N] or [n, rows, columns]."""
    flags = _flags(masks)
    if flags.ndim == 1:
        flags = flags[None]
    if flags.ndim not in (2, 3) or 0 in flags.shape:
        raise ConfigError(f"expected masks [n, N] or [n, rows, columns], got shape {list(flags.shape)}")
    if flags.ndim == 3 and grid is None:
        return flags
    flat = flags.reshape(len(flags), -1)
    return flat.reshape(len(flat), *grid_of(flat.shape[1], grid, size))


def require_patches(image: Floats, grid: Grid) -> tuple[int, int]:
    """Return a patch's (height, width) in pixels; ConfigError unless the grid divides the picture."""
    height, width = image.shape[:2]
    if height % grid[0] or width % grid[1]:
        raise ConfigError(
            f"an image of {height}x{width} pixels does not divide into a grid of {grid[0]}x{grid[1]} patches"
        )
    return height // grid[0], width // grid[1]


def upsample(values: npt.NDArray[Any], image: Floats) -> npt.NDArray[Any]:
    """Return per-patch values [rows, columns] for every pixel of the picture, [H, W]."""
    down, across = require_patches(image, (values.shape[0], values.shape[1]))
    return np.repeat(np.repeat(values, down, axis=0), across, axis=1)


def _flags(mask: ArrayLike) -> Bools:
    array = host(mask)
    if not np.isin(array, (0.0, 1.0)).all():
        raise ConfigError("a mask must be boolean (or 0 and 1), True where a patch is masked")
    return array.astype(bool)

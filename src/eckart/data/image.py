"""Images as vectors, by any torch module: an image encoder.

An image is read with Pillow, turned as its camera says, scaled and cut around its centre to one size, and given to
the module as (batch, 3, height, width) with each channel's mean taken off and its deviation divided out.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from eckart.core.extras import needed

__all__ = ["image_encoder"]

_PIXELS = 64_000_000  # of an image: 200 MB once it is decoded
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")
_IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def image_encoder(
    module: Any,
    size: int | tuple[int, int],
    *,
    folder: str | os.PathLike[str] = ".",
    mean: Sequence[float] = _IMAGENET[0],
    std: Sequence[float] = _IMAGENET[1],
    batch: int = 64,
    device: str = "cpu",
) -> Callable[[Sequence[str]], np.ndarray]:
    """Make an encoder of images of a torch module.

    Parameters
    ----------
    module : torch.nn.Module
        From (b, 3, height, width) float32 to (b, d); it is moved to `device` and evaluated, not trained.
    size : int or (height, width)
        What images are scaled and cut to.
    folder : path
        Where relative paths begin.
    mean, std : sequence of 3 floats
        Of red, green and blue, from 0 to 1, in the data that the module was trained on; by default ImageNet's.
    batch : int
        Images at a time.
    device : str
        Where torch computes.

    Returns
    -------
    callable
        From n paths to an (n, d) float32 array. Give it to `Features.encoded`. It raises FileNotFoundError for an image
        that is not there, ValueError for one that cannot be read or has more than 64 million pixels.

    Raises
    ------
    ImportError
        torch or Pillow is not installed.
    ValueError
        A size, mean or std that cannot be one.

    Examples
    --------
    >>> encode = image_encoder(resnet, 224, folder="posters")  # doctest: +SKIP
    >>> films = films.encoded("poster", encode)  # doctest: +SKIP
    """
    height, width = (size, size) if isinstance(size, int) else size
    if not (1 <= height <= 8192 and 1 <= width <= 8192):
        raise ValueError(f"size={size}: expected 1 to 8192 pixels a side")
    shift, scale = np.array(mean, np.float32), np.array(std, np.float32)
    if shift.shape != (3,) or scale.shape != (3,) or not np.all(scale > 0):
        raise ValueError(f"mean={mean}, std={std}: expected three numbers each, those of std positive")
    if batch < 1:
        raise ValueError(f"batch={batch}: expected at least 1")
    torch, pillow = needed("torch", "images"), needed("PIL.Image", "images")
    turned = needed("PIL.ImageOps", "images")
    base = Path(folder)

    def pixels(path: str) -> np.ndarray:
        with _opened(pillow, base / path) as image:
            upright = turned.exif_transpose(image).convert("RGB")
            fitted = turned.fit(upright, (width, height), method=pillow.Resampling.BICUBIC)
        return ((np.asarray(fitted, np.float32) / 255 - shift) / scale).transpose(2, 0, 1)

    def encode(paths: Sequence[str]) -> np.ndarray:
        parts = []
        module.to(device)
        was_training = module.training
        module.eval()
        try:
            for begin in range(0, len(paths), batch):
                block = np.stack([_readable(pixels, str(path), base) for path in paths[begin : begin + batch]])
                with torch.inference_mode():
                    given = module(torch.from_numpy(block).to(device))
                if not isinstance(given, torch.Tensor) or given.ndim != 2 or len(given) != len(block):
                    got = f"shape {tuple(given.shape)}" if isinstance(given, torch.Tensor) else type(given).__name__
                    raise ValueError(f"the module gave {got} for {len(block)} images, expected ({len(block)}, d)")
                parts.append(given.float().cpu().numpy())
        finally:
            module.train(was_training)
        return np.concatenate(parts) if parts else np.empty((0, 0), np.float32)

    return encode


def _readable(pixels: Callable[[str], np.ndarray], path: str, base: Path) -> np.ndarray:
    """Pixels of an image, or one sentence about it."""
    name = str(base / path)
    name = name if name.isprintable() else ascii(name)
    if not os.path.isfile(base / path):  # a pipe would be waited for
        raise FileNotFoundError(
            f"{name}: no such image: mend the path, say where it begins with folder=, or leave it empty."
        )
    try:
        return pixels(path)
    except Exception as error:  # of a damaged file Pillow raises what it likes
        said = " ".join(str(error).split())[:200]
        raise ValueError(f"{name}: cannot be read as an image ({said}): replace it, or leave its cell empty.") from None


def _opened(pillow: Any, path: Path) -> Any:
    """The image, not decoded yet, if it is not larger than we decode."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", pillow.DecompressionBombWarning)  # our own bound is below the one that warns
        image = pillow.open(path, formats=_FORMATS)
    if image.width * image.height > _PIXELS:
        image.close()
        raise ValueError(f"{image.width:,} x {image.height:,} pixels, at most {_PIXELS:,} are read")
    return image

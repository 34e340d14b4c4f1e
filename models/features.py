"""Fixed feature maps of images: nothing in them is learnt, so nothing is spent.

Noise hurts in proportion to how much is learnt. A scattering transform gives a linear
model most of what convolutions would have to learn, without looking at one row, and
below moderate epsilon beats networks that learn theirs (Tramèr and Boneh 2021,
"Differentially Private Learning Needs Better Features").
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.networks import FEATURES

__all__ = ["FEATURE_MAPS", "Scattering", "feature_shape"]

_ANGLES = 8
_CHANNELS = 1 + 2 * _ANGLES + _ANGLES**2
_GROUPS = 27  # that 81 channels are normalised in
_STRIDE = 4
# Each image's features have a norm of about 4, so that the intercept counts.
_SCALE = 0.1


class Scattering(nn.Module):
    """Scattering of depth 2 over 2 scales and 8 angles, then group normalisation.

    Moduli of wavelet coefficients, of these again, each averaged over 4 by 4 pixels
    (Bruna and Mallat 2013). Wavelets are Morlet's, in the plane, as convolutions with
    constant kernels: so it exports to ONNX as it is. Normalisation is within each
    image; statistics of the private images would have to be paid for.

    Maps ``(n, 1, height, width)`` to ``(n, 81, ⌈height/4⌉, ⌈width/4⌉)``.
    """

    fine: Tensor
    coarse: Tensor
    blur: Tensor
    blur_half: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("fine", _bank(size=11, sigma=0.8))
        self.register_buffer("coarse", _bank(size=21, sigma=1.6))
        self.register_buffer("blur", _gaussian(size=13, sigma=3.2))
        self.register_buffer("blur_half", _gaussian(size=7, sigma=1.6))

    def forward(self, images: Tensor) -> Tensor:
        """Features of images; each depends on its own image alone."""
        height, width = images.shape[-2:]
        first = _moduli(_convolve(images, self.fine))
        second = _moduli(_convolve(images, self.coarse, stride=2))
        # Each fine map is scattered again, as an image of its own.
        again = first.reshape(-1, 1, height, width)
        pairs = _moduli(_convolve(again, self.coarse, stride=2))
        pairs = pairs.reshape(-1, _ANGLES**2, (height + 1) // 2, (width + 1) // 2)
        parts = [
            _average(images, self.blur, stride=4),
            _average(first, self.blur, stride=4),
            _average(second, self.blur_half, stride=2),
            _average(pairs, self.blur_half, stride=2),
        ]
        normal = functional.group_norm(torch.cat(parts, dim=1), _GROUPS)
        return normal * _SCALE


FEATURE_MAPS: Mapping[str, Callable[[], nn.Module]] = dict(
    zip(FEATURES, (Scattering,), strict=True)
)


def feature_shape(name: str, image: tuple[int, int, int]) -> tuple[int, int, int]:
    """Shape of the features of one image.

    Raises:
        ValueError: there is no such map, or it does not take such images.

    >>> feature_shape("scattering", (1, 28, 28))
    (81, 7, 7)
    """
    if name not in FEATURES:
        raise ValueError(f"no features {name!r}; there are {', '.join(FEATURES)}")
    channels, height, width = image
    if channels != 1 or min(height, width) < 12:
        raise ValueError(f"{name} takes grey images of at least 12 by 12 pixels")
    return _CHANNELS, math.ceil(height / _STRIDE), math.ceil(width / _STRIDE)


def _convolve(images: Tensor, kernels: Tensor, *, stride: int = 1) -> Tensor:
    margin = kernels.shape[-1] // 2
    padded = functional.pad(images, (margin,) * 4, mode="reflect")
    return functional.conv2d(padded, kernels, stride=stride)


def _average(maps: Tensor, kernel: Tensor, *, stride: int) -> Tensor:
    """Every channel by itself."""
    channels = maps.shape[1]
    margin = kernel.shape[-1] // 2
    padded = functional.pad(maps, (margin,) * 4, mode="reflect")
    kernels = kernel.expand(channels, 1, *kernel.shape[2:])
    return functional.conv2d(padded, kernels, stride=stride, groups=channels)


def _moduli(coefficients: Tensor) -> Tensor:
    """Of complex numbers whose real parts come first, then the imaginary ones."""
    real, imaginary = coefficients.chunk(2, dim=1)
    return torch.sqrt(real * real + imaginary * imaginary + 1e-12)


def _bank(*, size: int, sigma: float) -> Tensor:
    """Morlet wavelets at every angle: real parts, then imaginary, ``(2·8, 1, s, s)``.

    The frequency is 3π/4 at sigma 0.8 and falls as sigma grows; the envelope is longer
    across than along by 8/4. Subtracting its share makes the mean zero.
    """
    waves = []
    slant, frequency = 4 / _ANGLES, 0.6 * math.pi / sigma
    for angle in range(_ANGLES):
        along, across = _plane(size, math.pi * angle / _ANGLES)
        envelope = torch.exp(-(along**2 + (slant * across) ** 2) / (2 * sigma**2))
        wave = envelope * torch.exp(1j * frequency * along)
        wave = wave - envelope * (wave.real.sum() / envelope.sum())
        waves.append(wave * slant / (2 * math.pi * sigma**2))
    stacked = torch.stack(waves)[:, None]
    return torch.cat([stacked.real, stacked.imag]).float()


def _gaussian(*, size: int, sigma: float) -> Tensor:
    along, across = _plane(size, 0.0)
    bell = torch.exp(-(along**2 + across**2) / (2 * sigma**2))
    return (bell / bell.sum())[None, None].float()


def _plane(size: int, angle: float) -> tuple[Tensor, Tensor]:
    """Coordinates of a kernel's pixels, turned by an angle, from its middle."""
    middle = torch.arange(size, dtype=torch.float64) - size // 2
    y, x = torch.meshgrid(middle, middle, indexing="ij")
    cosine, sine = math.cos(angle), math.sin(angle)
    return x * cosine + y * sine, y * cosine - x * sine

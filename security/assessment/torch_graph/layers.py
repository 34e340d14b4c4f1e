"""Layers of networks in torch: convolution, pooling, normalisation, padding, scales."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from security.assessment.torch_graph.steps import soft, stepped
from security.errors import AssessmentError

__all__ = ["LAYERS", "QUANTISED"]

QUANTISED = frozenset(
    (
        *("ConvInteger", "DequantizeLinear", "DynamicQuantizeLinear", "MatMulInteger"),
        *("QLinearConv", "QLinearMatMul", "QuantizeLinear"),
    )
)
"""Operators whose whole numbers onnxruntime may round otherwise than torch."""

_Attributes = Mapping[str, Any]
_CONV = (nn.functional.conv1d, nn.functional.conv2d, nn.functional.conv3d)
_MAX_POOL = (
    nn.functional.max_pool1d,
    nn.functional.max_pool2d,
    nn.functional.max_pool3d,
)
_MEAN_POOL = (
    nn.functional.avg_pool1d,
    nn.functional.avg_pool2d,
    nn.functional.avg_pool3d,
)
_MODES = {"constant": "constant", "reflect": "reflect", "edge": "replicate"}


def _spatial(source: Tensor) -> int:
    count = source.dim() - 2
    if count not in (1, 2, 3):
        raise AssessmentError(f"a layer over {count} axes is not supported")
    return count


def _pads(
    source: Tensor, attributes: _Attributes, kernel: Sequence[int]
) -> tuple[list[int], list[int]]:
    """Padding before and after each spatial axis."""
    count = len(kernel)
    strides = attributes.get("strides") or [1] * count
    dilations = attributes.get("dilations") or [1] * count
    mode = attributes.get("auto_pad", b"NOTSET").decode()
    if mode == "NOTSET":
        pads = list(attributes.get("pads") or [0] * (2 * count))
        return pads[:count], pads[count:]
    if mode == "VALID":
        return [0] * count, [0] * count
    before, after = [], []
    for size, step, spread, width in zip(source.shape[2:], strides, dilations, kernel):
        wanted = -(-size // step)
        total = max(0, (wanted - 1) * step + spread * (width - 1) + 1 - size)
        small, large = total // 2, total - total // 2
        before.append(small if mode == "SAME_UPPER" else large)
        after.append(large if mode == "SAME_UPPER" else small)
    return before, after


def _padded(
    source: Tensor, before: Sequence[int], after: Sequence[int], value: float = 0.0
) -> Tensor:
    flat = [size for pair in zip(before[::-1], after[::-1]) for size in pair]
    if not any(flat):
        return source
    return nn.functional.pad(source, flat, value=value)


def _conv(inputs: Sequence[Any], attributes: _Attributes) -> Tensor:
    source, weight = inputs[0], inputs[1]
    bias = inputs[2] if len(inputs) > 2 else None
    count = _spatial(source)
    before, after = _pads(source, attributes, weight.shape[2:])
    symmetric = before == after
    result: Tensor = _CONV[count - 1](
        source if symmetric else _padded(source, before, after),
        weight,
        bias,
        stride=attributes.get("strides") or 1,
        padding=before if symmetric else 0,
        dilation=attributes.get("dilations") or 1,
        groups=attributes.get("group", 1),
    )
    return result


def _max_pool(inputs: Sequence[Any], attributes: _Attributes) -> Tensor:
    source: Tensor = inputs[0]
    kernel = attributes["kernel_shape"]
    before, after = _pads(source, attributes, kernel)
    # Torch pads by at most half a kernel, and on both sides alike.
    source = _padded(source, before, after, float("-inf"))
    result: Tensor = _MAX_POOL[_spatial(source) - 1](
        source,
        kernel,
        stride=attributes.get("strides") or [1] * len(kernel),
        dilation=attributes.get("dilations") or 1,
        ceil_mode=bool(attributes.get("ceil_mode", 0)),
    )
    return result


def _average_pool(inputs: Sequence[Any], attributes: _Attributes) -> Tensor:
    source: Tensor = inputs[0]
    kernel = attributes["kernel_shape"]
    if attributes.get("dilations", [1] * len(kernel)) != [1] * len(kernel):
        raise AssessmentError("AveragePool with dilations is not supported")
    before, after = _pads(source, attributes, kernel)
    pool = _MEAN_POOL[_spatial(source) - 1]
    options: dict[str, Any] = {
        "stride": attributes.get("strides") or [1] * len(kernel),
        "ceil_mode": bool(attributes.get("ceil_mode", 0)),
    }
    if not any((*before, *after)):
        return pool(source, kernel, **options)
    mean = pool(_padded(source, before, after), kernel, **options)
    if attributes.get("count_include_pad", 0):
        return mean
    share = pool(_padded(torch.ones_like(source), before, after), kernel, **options)
    return mean / share


def _global(function: Callable[..., Tensor]) -> Any:
    def run(inputs: Sequence[Any], _: _Attributes) -> Tensor:
        source: Tensor = inputs[0]
        return function(source, list(range(2, source.dim())), keepdim=True)

    return run


def _batch_norm(inputs: Sequence[Any], attributes: _Attributes) -> Tensor:
    if attributes.get("training_mode"):
        raise AssessmentError("BatchNormalization in training is not supported")
    source, scale, bias, mean, variance = inputs[:5]
    return nn.functional.batch_norm(
        source, mean, variance, scale, bias, eps=attributes.get("epsilon", 1e-5)
    )


def _instance_norm(inputs: Sequence[Any], attributes: _Attributes) -> Tensor:
    source, scale, bias = inputs
    return nn.functional.instance_norm(
        source, weight=scale, bias=bias, eps=attributes.get("epsilon", 1e-5)
    )


def _layer_norm(inputs: Sequence[Any], attributes: _Attributes) -> Tensor:
    source: Tensor = inputs[0]
    axis = attributes.get("axis", -1) % source.dim()
    bias = inputs[2] if len(inputs) > 2 else None
    shape = source.shape[axis:]
    return nn.functional.layer_norm(
        source,
        list(shape),
        inputs[1].expand(shape),
        None if bias is None else bias.expand(shape),
        attributes.get("epsilon", 1e-5),
    )


def _group_norm(inputs: Sequence[Any], attributes: _Attributes) -> Tensor:
    source, scale, bias = inputs
    groups = attributes["num_groups"]
    if attributes["_opset"] < 21:
        # One scale per group then; one per channel since.
        scale = scale.repeat_interleave(source.shape[1] // groups)
        bias = bias.repeat_interleave(source.shape[1] // groups)
    eps = attributes.get("epsilon", 1e-5)
    return nn.functional.group_norm(source, groups, scale, bias, eps)


def _pad(inputs: Sequence[Any], attributes: _Attributes) -> Tensor:
    source: Tensor = inputs[0]
    mode = _MODES.get(attributes.get("mode", b"constant").decode())
    if mode is None or (len(inputs) > 3 and inputs[3] is not None):
        raise AssessmentError("Pad of this mode or of chosen axes is not supported")
    given = inputs[1] if len(inputs) > 1 else attributes["pads"]
    pads = [int(size) for size in given]
    value = attributes.get("value", 0.0)
    if len(inputs) > 2 and inputs[2] is not None:
        value = float(inputs[2])
    rank = source.dim()
    flat = [s for a in reversed(range(rank)) for s in (pads[a], pads[rank + a])]
    if mode == "constant":
        return nn.functional.pad(source, flat, value=value)
    if any(flat[2 * (rank - 2) :]):
        raise AssessmentError(f"Pad by {mode} over the first axes is not supported")
    return nn.functional.pad(source, flat[: 2 * (rank - 2)], mode=mode)


def _along(scale: Tensor, source: Tensor, axis: int) -> Tensor:
    """A scale per element of one axis, or one for all."""
    if scale.dim() == 0 or scale.numel() == 1:
        return scale.reshape(())
    shape = [1] * source.dim()
    shape[axis % source.dim()] = -1
    return scale.reshape(shape)


def _quantize(inputs: Sequence[Any], attributes: _Attributes) -> Tensor:
    source, scale = inputs[0], inputs[1]
    zero = inputs[2] if len(inputs) > 2 else torch.zeros((), dtype=torch.uint8)
    axis = attributes.get("axis", 1)
    steps = source / _along(scale, source, axis)
    return _to_steps(steps, _along(zero, source, axis), attributes)


def _to_steps(steps: Tensor, zero: Tensor, attributes: _Attributes) -> Tensor:
    """Whole steps from a zero point, as far as its type reaches, in floats.

    The gradient goes straight through the rounding, and ends where the type does:
    there a quantised network has its ReLU.
    """
    bounds = torch.iinfo(zero.dtype)
    shift = zero.to(steps.dtype)
    result = torch.clamp(torch.round(steps) + shift, bounds.min, bounds.max)
    if soft(steps, attributes):
        return stepped(torch.clamp(steps + shift, bounds.min, bounds.max), result)
    return result


def _dynamic_quantize(
    inputs: Sequence[Any], attributes: _Attributes
) -> tuple[Tensor, Tensor, Tensor]:
    """Steps, scale and zero point, of each row as if it were alone in its batch."""
    source: Tensor = inputs[0].to(attributes["_dtype"])
    axes = list(range(1, source.dim()))
    low = source.amin(axes, keepdim=True).clamp_max(0.0)
    high = source.amax(axes, keepdim=True).clamp_min(0.0)
    scale = ((high - low) / 255).clamp_min(torch.finfo(source.dtype).tiny).detach()
    zero = torch.round(-low / scale).clamp(0, 255).detach()
    steps = source / scale + zero
    result = torch.clamp(torch.round(source / scale) + zero, 0, 255)
    if soft(source, attributes):
        result = stepped(torch.clamp(steps, 0, 255), result)
    return result, scale, zero


def _from_zero(inputs: Sequence[Any], place: int, zero: int, dtype: Any) -> Tensor:
    """One input, counted from its zero point; of weights, one per output channel."""
    source: Tensor = inputs[place].to(dtype)
    given = inputs[zero] if len(inputs) > zero else None
    if given is None:
        return source
    shift = given.to(dtype)
    if place and shift.numel() > 1 and shift.dim() == 1:
        shift = _channels(shift, source)
    return source - shift


def _channels(scale: Tensor, weight: Tensor) -> Tensor:
    """A scale per output channel of a kernel, or per column of a matrix."""
    if scale.numel() == 1:
        return scale.reshape(())
    if weight.dim() == 2:
        return scale
    return scale.reshape(-1, *[1] * (weight.dim() - 1))


def _conv_integer(inputs: Sequence[Any], attributes: _Attributes) -> Tensor:
    dtype = attributes["_dtype"]
    source = _from_zero(inputs, 0, 2, dtype)
    return _conv([source, _from_zero(inputs, 1, 3, dtype)], attributes)


def _matmul_integer(inputs: Sequence[Any], attributes: _Attributes) -> Tensor:
    dtype = attributes["_dtype"]
    source = _from_zero(inputs, 0, 2, dtype)
    return source @ _from_zero(inputs, 1, 3, dtype)


def _qlinear_conv(inputs: Sequence[Any], attributes: _Attributes) -> Tensor:
    dtype = attributes["_dtype"]
    bias = inputs[8].to(dtype) if len(inputs) > 8 else None
    whole = _conv(
        [_from_zero(inputs, 0, 2, dtype), _from_zero(inputs, 3, 5, dtype), bias],
        attributes,
    )
    scale = inputs[1] * inputs[4] / inputs[6]
    return _to_steps(whole * _along(scale, whole, 1), inputs[7], attributes)


def _qlinear_matmul(inputs: Sequence[Any], attributes: _Attributes) -> Tensor:
    dtype = attributes["_dtype"]
    whole = _from_zero(inputs, 0, 2, dtype) @ _from_zero(inputs, 3, 5, dtype)
    scale = inputs[1] * inputs[4] / inputs[6]
    return _to_steps(whole * scale, inputs[7], attributes)


def _dequantize(inputs: Sequence[Any], attributes: _Attributes) -> Tensor:
    source, scale = inputs[0].to(attributes["_dtype"]), inputs[1]
    axis = attributes.get("axis", 1)
    if len(inputs) > 2 and inputs[2] is not None:
        source = source - _along(inputs[2].to(source.dtype), source, axis)
    result: Tensor = source * _along(scale, source, axis)
    return result


LAYERS: Mapping[str, Callable[[Sequence[Any], _Attributes], Any]] = {
    "AveragePool": _average_pool,
    "BatchNormalization": _batch_norm,
    "Conv": _conv,
    "ConvInteger": _conv_integer,
    "DequantizeLinear": _dequantize,
    "DynamicQuantizeLinear": _dynamic_quantize,
    "GlobalAveragePool": _global(torch.mean),
    "GlobalMaxPool": _global(torch.amax),
    "GroupNormalization": _group_norm,
    "InstanceNormalization": _instance_norm,
    "LayerNormalization": _layer_norm,
    "MatMulInteger": _matmul_integer,
    "MaxPool": _max_pool,
    "Pad": _pad,
    "QLinearConv": _qlinear_conv,
    "QLinearMatMul": _qlinear_matmul,
    "QuantizeLinear": _quantize,
}

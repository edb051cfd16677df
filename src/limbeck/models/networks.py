"""The built-in networks. Each ends in a layer called `linear`, whose input is the feature vector.

All of them start from torch's default initialisation, so the caller's seed decides the weights.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

from torch import Tensor, nn
from torch.nn import functional

from limbeck.errors import ConfigError


class LinearClassifier(nn.Module):
    """Softmax regression on the flattened input: `[B, ...]` to logits `[B, C]`."""

    def __init__(self, inputs_shape: Sequence[int], classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(math.prod(inputs_shape), classes)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.linear(x.flatten(1)))


class MLP(nn.Module):
    """A multi-layer perceptron on the flattened input: `[B, ...]` to logits `[B, C]`.

    Args:
        inputs_shape: the shape of one input, without the batch.
        hidden: the width of each hidden layer; a ReLU and, where asked for, dropout follow each.
        dropout: the probability that a hidden unit is dropped in training.
    """

    def __init__(self, inputs_shape: Sequence[int], classes: int, *, hidden: Sequence[int], dropout: float = 0.0):
        super().__init__()
        layers: list[nn.Module] = []
        width = math.prod(inputs_shape)
        for units in hidden:
            layers += [nn.Linear(width, units), nn.ReLU()]
            if dropout > 0:
                layers.append(nn.Dropout(dropout))
            width = units
        self.hidden = nn.Sequential(*layers)
        self.linear = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.linear(self.hidden(x.flatten(1))))


class CNN(nn.Module):
    """A small convolutional network: images `[B, channels, H, W]` (or `[B, H, W]`) to logits `[B, C]`.

    Each stage is a 3×3 convolution, batch norm and ReLU; the map is halved after every stage but the last for as long
    as it has two rows and two columns to halve, then averaged.

    Args:
        inputs_shape: `(channels, H, W)`, or `(H, W)` for images of one channel.
        channels: the width of each stage.
    """

    def __init__(self, inputs_shape: Sequence[int], classes: int, *, channels: Sequence[int]) -> None:
        super().__init__()
        width, *sides = image_shape(inputs_shape)
        stages: list[nn.Module] = []
        for stage, filters in enumerate(channels):
            stages += [nn.Conv2d(width, filters, 3, padding=1, bias=False), nn.BatchNorm2d(filters), nn.ReLU()]
            if stage < len(channels) - 1 and min(sides) >= 2:
                stages.append(nn.MaxPool2d(2))
                sides = [side // 2 for side in sides]
            width = filters
        self.stages = nn.Sequential(*stages)
        self.linear = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        maps = self.stages(x if x.ndim == 4 else x.unsqueeze(1))
        return cast(Tensor, self.linear(maps.mean(dim=(2, 3))))


class _BasicBlock(nn.Module):
    """Two 3×3 convolutions beside a parameter-free shortcut (option A of He et al.)."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels_out)
        self.stride = stride
        self.padding = (channels_out - channels_in) // 2

    def forward(self, x: Tensor) -> Tensor:
        maps = functional.relu(self.bn1(self.conv1(x)))
        maps = self.bn2(self.conv2(maps))
        shortcut = x
        if self.stride > 1 or self.padding > 0:
            shortcut = functional.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.padding, self.padding))
        return functional.relu(maps + shortcut)


class CifarResNet(nn.Module):
    """A residual network for small images: `[B, channels, H, W]` (or `[B, H, W]`) to logits `[B, C]`.

    A 3×3 stem, three stages of n basic blocks with `width`, 2·`width` and 4·`width` channels, the second and third
    halving the map, parameter-free shortcuts (option A: subsampling, new channels zero), global average pooling.

    Source: He, Zhang, Ren and Sun, "Deep Residual Learning for Image Recognition" (2015), section 4.2.

    Args:
        inputs_shape: `(channels, H, W)`, or `(H, W)` for images of one channel.
        depth: 6n + 2 layers.
        width: the channels of the first stage; even, 16 in the paper.

    Raises:
        ConfigError: where the depth is not 6n + 2, or the width is odd.
    """

    def __init__(self, inputs_shape: Sequence[int], classes: int, *, depth: int, width: int = 16) -> None:
        super().__init__()
        if depth < 8 or (depth - 2) % 6:
            raise ConfigError(f"a CIFAR ResNet has 6n + 2 layers (8, 14, 20, ...), not {depth}")
        if width < 2 or width % 2:
            raise ConfigError(f"the width of a CIFAR ResNet must be even and positive, found {width}")
        blocks = (depth - 2) // 6
        channels = image_shape(inputs_shape)[0]
        self.conv1 = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1 = _stage(width, width, blocks, stride=1)
        self.layer2 = _stage(width, 2 * width, blocks, stride=2)
        self.layer3 = _stage(2 * width, 4 * width, blocks, stride=2)
        self.linear = nn.Linear(4 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        maps = functional.relu(self.bn1(self.conv1(x if x.ndim == 4 else x.unsqueeze(1))))
        maps = self.layer3(self.layer2(self.layer1(maps)))
        return cast(Tensor, self.linear(maps.mean(dim=(2, 3))))


def _stage(channels_in: int, channels_out: int, blocks: int, *, stride: int) -> nn.Sequential:
    first = _BasicBlock(channels_in, channels_out, stride)
    return nn.Sequential(first, *(_BasicBlock(channels_out, channels_out, 1) for _ in range(blocks - 1)))


def image_shape(inputs_shape: Sequence[int]) -> tuple[int, int, int]:
    """`(channels, H, W)` of one image; two numbers mean one channel.

    Raises:
        ConfigError: where the shape is not an image's.
    """
    if len(inputs_shape) == 2:
        return (1, inputs_shape[0], inputs_shape[1])
    if len(inputs_shape) == 3:
        return (inputs_shape[0], inputs_shape[1], inputs_shape[2])
    raise ConfigError(f"an image is (channels, H, W) or (H, W), found inputs of shape {tuple(inputs_shape)}")

"""DALAResNet50 in plain PyTorch, written apart from the JAX model; every part has the same name in both."""

from __future__ import annotations

import torch
from torch import nn


class ChannelAttention(nn.Module):
    def __init__(self, channels: int, reduction: int) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc1 = nn.Conv2d(channels, channels // reduction, 1)
        self.act = nn.LeakyReLU(0.01)
        self.fc2 = nn.Conv2d(channels // reduction, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.sigmoid(self.fc2(self.act(self.fc1(self.pool(x)))))


class Bottleneck(nn.Module):
    def __init__(self, inplanes: int, planes: int, stride: int, attention: nn.Module | None) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inplanes, planes, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3 = nn.Conv2d(planes, planes * 4, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(planes * 4)
        self.relu = nn.ReLU()
        self.attention = attention
        self.downsample = None
        if stride != 1 or inplanes != planes * 4:
            self.downsample = nn.Sequential(
                nn.Conv2d(inplanes, planes * 4, 1, stride, bias=False), nn.BatchNorm2d(planes * 4)
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        if self.attention is not None:
            out = self.attention(out)
        return self.relu(out + identity)


class DualActivationHead(nn.Module):
    def __init__(self, features: int, num_classes: int, widths: tuple[int, int], dropout: float) -> None:
        super().__init__()
        self.dense1 = nn.Linear(features, widths[0])
        self.dense2 = nn.Linear(widths[0], widths[1])
        self.dense3 = nn.Linear(widths[1], num_classes)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.drop(nn.functional.leaky_relu(self.dense1(x), 0.01))
        x = self.drop(nn.functional.relu(self.dense2(x)))
        return self.dense3(x)


class DALAResNet50(nn.Module):
    def __init__(self, num_classes: int, attention: str, head: str, dropout: float = 0.0) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU()
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        inplanes = 64
        for index, (planes, blocks) in enumerate(((64, 3), (128, 4), (256, 6), (512, 3)), start=1):
            stage = []
            for i in range(blocks):
                in_block = index == 4 and attention == "layer4_blocks"
                stride = 2 if i == 0 and index > 1 else 1
                stage.append(Bottleneck(inplanes, planes, stride, ChannelAttention(2048, 16) if in_block else None))
                inplanes = planes * 4
            setattr(self, f"layer{index}", nn.Sequential(*stage))
        self.attention = ChannelAttention(2048, 16) if attention == "layer4" else None
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.head: nn.Module
        if head == "dual":
            self.head = DualActivationHead(2048, num_classes, (512, 256), dropout)
        else:
            self.head = nn.Linear(2048, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        if self.attention is not None:
            x = self.attention(x)
        return self.head(self.avgpool(x).flatten(1))

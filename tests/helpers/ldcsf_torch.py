"""LDCSF in PyTorch, written apart from the JAX model, on torchvision's Swin blocks."""

from __future__ import annotations

import torch
from torch import nn

from tests.helpers.dala_resnet_torch import Bottleneck
from tests.helpers.torchvision_import import PatchMerging, SwinTransformerBlock


class ChannelsFirst(nn.Module):
    """Applies a module of (b, c, h, w) to (b, h, w, c)."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class LocalDepthConv(nn.Module):
    def __init__(self, channels: int, norm: str) -> None:
        super().__init__()
        self.depthwise = ChannelsFirst(nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False))
        self.norm = ChannelsFirst(nn.BatchNorm2d(channels)) if norm == "batch" else nn.LayerNorm(channels)
        self.act = nn.GELU()
        self.pointwise = ChannelsFirst(nn.Conv2d(channels, channels, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.pointwise(self.act(self.norm(self.depthwise(x))))


class FeatureReconstruction(nn.Module):
    def __init__(self, channels: int, reduction: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, channels // reduction)
        self.fc2 = nn.Linear(channels // reduction, channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        statistic = torch.einsum("bhwc->bc", x) / (x.shape[1] * x.shape[2])
        weight = torch.sigmoid(self.fc2(nn.functional.gelu(self.fc1(statistic))))
        return torch.einsum("bhwc,bc->bhwc", x, weight)


class LDCSF(nn.Module):
    def __init__(
        self,
        num_classes: int,
        *,
        embed_dim: int = 96,
        depths: tuple[int, ...] = (2, 2, 6),
        heads: tuple[int, ...] = (3, 6, 12),
        window: int = 7,
        ldc: str = "stages",
        ldc_norm: str = "layer",
        fr: bool = True,
        fr_reduction: int = 16,
        resnet: bool = True,
        resnet_blocks: int = 3,
    ) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, embed_dim, 4, 4)
        self.embed_norm = nn.LayerNorm(embed_dim)
        self.stages, self.merges, self.ldc = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        self.places = ldc
        channels = embed_dim
        for index, depth in enumerate(depths):
            if index:
                self.merges.append(PatchMerging(channels))
                channels *= 2
            blocks = [
                SwinTransformerBlock(channels, heads[index], [window] * 2, [window // 2 if i % 2 else 0] * 2)
                for i in range(depth)
            ]
            self.stages.append(nn.ModuleList(blocks))
            for _ in range({"stages": 1, "blocks": depth, "none": 0}[ldc]):
                self.ldc.append(LocalDepthConv(channels, ldc_norm))
        self.fr = FeatureReconstruction(channels, fr_reduction) if fr else nn.Identity()
        self.resnet, self.norm = nn.Sequential(), nn.Identity()
        if resnet:
            width = channels * 4 // 3
            for i in range(resnet_blocks):
                self.resnet.append(Bottleneck(channels, width, 1 if i else 2, None))
                channels = 4 * width
        else:
            self.norm = nn.LayerNorm(channels)
        self.head = nn.Linear(channels, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed_norm(self.proj(x).permute(0, 2, 3, 1))
        convs = iter(self.ldc)
        for index, stage in enumerate(self.stages):
            if index:
                x = self.merges[index - 1](x)
            for block in stage:
                x = block(x)
                if self.places == "blocks":
                    x = next(convs)(x)
            if self.places == "stages":
                x = next(convs)(x)
        x = self.fr(x)
        x = self.resnet(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return self.head(self.norm(x).mean((1, 2)))


def rules(batch_norm: bool) -> list[tuple[str, str]]:
    """Return the substitutions, in order, that turn our paths into the names here.

    Args:
      batch_norm: the local depth convolutions use batch norm.
    """
    return [
        *([(r"^(ldc/\d+/norm)", r"\1/inner")] if batch_norm else []),
        (r"^patch_embed/proj", "proj"),
        (r"^patch_embed/norm", "embed_norm"),
        (r"/mlp/fc1", "/mlp/0"),
        (r"/mlp/fc2", "/mlp/3"),
        (r"^(ldc/\d+/(depthwise|pointwise))", r"\1/inner"),
    ]

"""The networks of the experiments."""

import torch
from torch import Tensor, nn

__all__ = ["ImageNetwork", "PointNetwork"]


def _convolution(inputs: int, outputs: int, size: int = 3, stride: int = 1, dilation: int = 1) -> nn.Sequential:
    """Convolution, batch normalisation and ReLU; the image keeps its size but for the stride."""
    padding = dilation * (size // 2)
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, size, stride, padding, dilation, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


class _Residual(nn.Module):
    def __init__(self, channels: int, dilation: int = 1) -> None:
        super().__init__()
        self.change = _convolution(channels, channels, dilation=dilation)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.change(x)


def _toy_body(width: int) -> list[nn.Module]:
    """An image (B,3,64,64) to features (B,4 width,8,8), each of which sees nearly all of the image."""
    return [
        _convolution(3, width, 5, 2),
        _convolution(width, 2 * width, 3, 2),
        *(_Residual(2 * width, dilation) for dilation in (1, 2, 3)),
        _convolution(2 * width, 4 * width, 3, 2),
        _Residual(4 * width),
    ]


class _OfImages(nn.Module):
    """Layers on images, which are made grey about zero; channels last, which makes a step a quarter faster on a CPU."""

    layers: nn.Sequential

    def __init__(self, bfloat16: bool) -> None:
        super().__init__()
        self.rounded = bfloat16

    def out(self, images: Tensor) -> Tensor:
        """What the layers make of images (B,3,64,64), in the images' dtype."""
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.rounded):
            out = self.layers((images - 0.5).contiguous(memory_format=torch.channels_last))
        return out.to(images.dtype)


class PointNetwork(_OfImages):
    """Image (B,3,64,64) in [0,1] to 64 points (B,64,2) of the unit square and `extra` numbers for each (B,64,extra).

    One point for each patch of 8 x 8 pixels, at most `reach` image sides from its middle along either axis: what the
    published line example calls the patch size (arXiv 1611.05705). bfloat16: convolve in that, under autocast.
    """

    middles: Tensor

    def __init__(self, width: int, reach: float, extra: int = 0, bfloat16: bool = False) -> None:
        super().__init__(bfloat16)
        layers = _toy_body(width)
        self.layers = nn.Sequential(*layers, _convolution(4 * width, 4 * width, 1), nn.Conv2d(4 * width, 2 + extra, 1))
        self.reach = reach
        at = (torch.arange(8) + 0.5) / 8
        grid = torch.stack(torch.meshgrid(at, at, indexing="xy"), -1)
        self.register_buffer("middles", grid.flatten(0, 1), persistent=False)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        out = self.out(images).flatten(2).mT
        return self.middles + self.reach * torch.tanh(out[..., :2]), out[..., 2:]


class ImageNetwork(_OfImages):
    """Image (B,3,64,64) in [0,1] to `outputs` numbers (B,outputs): `PointNetwork`'s body, then all of it together."""

    def __init__(self, width: int, outputs: int, bfloat16: bool = False) -> None:
        super().__init__(bfloat16)
        self.layers = nn.Sequential(
            *_toy_body(width),
            _convolution(4 * width, 4 * width, 3, 2),
            nn.Flatten(),
            nn.Linear(64 * width, 8 * width, bias=False),
            nn.BatchNorm1d(8 * width),
            nn.ReLU(inplace=True),
            nn.Linear(8 * width, outputs),
        )

    def forward(self, images: Tensor) -> Tensor:
        return self.out(images)

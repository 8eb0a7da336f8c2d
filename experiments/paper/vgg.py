"""The network of the paper's experiments: VGG-11 on a constant input."""

from torch import Tensor, nn

__all__ = ["ConstantVgg11"]

# Simonyan and Zisserman 2015, arXiv 1409.1556, table 1, column A; 0 is a 2 x 2 max-pool.
_LAYERS = (64, 0, 128, 0, 256, 256, 0, 512, 512, 0, 512, 512, 0)


class ConstantVgg11(nn.Module):
    """VGG-11 whose classifier is one linear layer, fed the constant image ones(1,3,32,32): () -> (outputs,).

    The input never changes, so that the network is nothing but an over-parametrised vector of `outputs` numbers, which
    is what the paper optimises in its sections 4.1 and 4.2. Weights start as torchvision starts them (He et al.
    2015, fan out; biases zero), the last layer as torch's default.
    """

    def __init__(self, outputs: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for width in _LAYERS:
            if width == 0:
                layers.append(nn.MaxPool2d(2))
                continue
            convolution = nn.Conv2d(channels, width, 3, padding=1)
            nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
            nn.init.zeros_(convolution.get_parameter("bias"))
            layers += [convolution, nn.ReLU(inplace=True)]
            channels = width
        self.features = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(7), nn.Flatten())
        self.classifier = nn.Linear(512 * 49, outputs)

    def forward(self) -> Tensor:
        weight = self.classifier.weight
        return self.classifier(self.features(weight.new_ones(1, 3, 32, 32))).squeeze(0)

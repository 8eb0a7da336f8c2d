"""What the drivers that fit lines and circles in toy images can be told alike."""

from dataclasses import dataclass

from experiments.running.training import TrainingConfig

__all__ = ["ConsensusConfig"]


@dataclass(frozen=True)
class ConsensusConfig(TrainingConfig):
    width: int = 12
    """Channels of the first layer of a network that predicts points; the others have multiples of it."""
    bfloat16: bool = False
    """Networks convolve in bfloat16: half the time where the processor or the device has it, more where not."""
    reach: float = 0.12
    """How far a point may lie from the middle of its patch, in image sides; the whole image is 0.5."""
    hypotheses: int = 64
    """Drawn for each image."""
    pools: int = 4
    """What hypotheses are split into where a loss is learned from draws, which are each other's baseline."""
    threshold: float = 0.05
    """Distance in image sides within which a point agrees."""
    alpha: float = 0.5
    """How much a score counts in the choice."""
    beta: float = 100.0
    """Steepness of a soft inlier."""
    scale: float = 0.1
    """Image sides beyond which a larger error hardly counts in the loss of a method that chooses."""
    test_images: int = 1000
    """Unseen images, others for every seed, so that what seeds differ by includes what images do."""
    correct_px: float = 5.0
    """A model is correct that is off by less: a line where it crosses the border."""

"""What the drivers that fit lines and circles in toy images can be told alike."""

from dataclasses import dataclass

from experiments.running.training import TrainingConfig

__all__ = ["ConsensusConfig"]


@dataclass(frozen=True)
class ConsensusConfig(TrainingConfig):
    width: int = 12
    """Sets the channels of the first layer of a network that predicts points; the others have multiples of it."""
    bfloat16: bool = False
    """Lets networks convolve in bfloat16: half the time where the processor or the device has it, more where not."""
    reach: float = 0.12
    """Limits how far a point may lie from the middle of its patch, in image sides; the whole image is 0.5."""
    hypotheses: int = 64
    """Sets how many hypotheses are drawn for each image."""
    pools: int = 4
    """Sets how many pools hypotheses are split into where a loss is learned from draws; the pools are each other's
    baseline."""
    threshold: float = 0.05
    """Sets the distance in image sides within which a point agrees."""
    alpha: float = 0.5
    """Sets how much a score counts in the choice."""
    beta: float = 100.0
    """Sets the steepness of a soft inlier."""
    scale: float = 0.1
    """Sets the error in image sides beyond which a larger one hardly counts in the loss of a method that chooses."""
    test_images: int = 1000
    """Sets the number of unseen images, others for every seed, so that what seeds differ by includes what images do."""
    correct_px: float = 5.0
    """Sets by how much less a correct model is off: a line where it crosses the border."""

"""The section `train` of params.yaml."""

from pydantic import Field

from stages.training.augmentation import AugmentationParams
from stages.training.balance import BalanceParams
from stages.training.optimization import OptimizationParams
from stages.training.start import StartParams


class TrainParams(OptimizationParams, AugmentationParams, BalanceParams, StartParams):
    """`train` of params.yaml."""

    seed: int = Field(ge=0, lt=2**30)
    epochs: int = Field(ge=1)
    batch_size: int = Field(ge=1)
    label_smoothing: float = Field(ge=0, lt=1)
    early_stopping: int = Field(ge=0)  # epochs without a lower validation loss; 0: off
    checkpoint_minutes: float = Field(gt=0)  # within an epoch; each epoch ends with a checkpoint anyway
    callbacks: list[str]  # dotted names of your own Keras callbacks, created without arguments

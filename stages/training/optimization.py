"""The optimizer and its learning-rate schedule."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from stages.common.params import Section

if TYPE_CHECKING:
    import keras


# The optimizers with which scaling a gradient of batch normalization is scaling its learning rate.
BY_GRADIENT = ("sgd", "muon")
# The schedules that start low, and the fraction of the run in which they rise.
UP_AND_DOWN = {"one_cycle": 0.3, "triangle": 0.2}


class OptimizationParams(Section):
    """The part of `train` in params.yaml that describes the optimizer."""

    optimizer: Literal["adam", "adamw", "sgd", "muon"]
    learning_rate: float = Field(gt=0)  # the peak of the schedule
    schedule: Literal["constant", "cosine", "one_cycle", "step", "triangle"]
    warmup_epochs: float = Field(ge=0)  # linear, from zero; ignored by schedules that start low
    momentum: float = Field(ge=0, lt=1)  # Nesterov's; sgd, and muon but for kernels
    weight_decay: float = Field(ge=0)  # decoupled; not with adam
    clip_norm: float = Field(ge=0)  # of the whole gradient; 0: off
    lookahead: int = Field(ge=0, lt=2**31)  # steps between two updates of the slow weights; 0: off
    offset_rate: float = Field(gt=0)  # factor on the learning rate of batch-normalization offsets; sgd and muon
    kernel_rate: float = Field(gt=0)  # factor on the learning rate of convolutions' kernels; muon only

    @model_validator(mode="after")
    def _one_of_offset_rate_and_clip_norm(self) -> Self:
        # The factor scales the gradient, which would change its norm.
        if self.clip_norm and self.offset_rate != 1 and self.optimizer in BY_GRADIENT:
            raise ValueError("clip_norm and offset_rate do not go together; set clip_norm: 0 or offset_rate: 1")
        return self


def notes(params: OptimizationParams, epochs: int) -> list[str]:
    """Return a sentence for each key that has no effect with the other choices."""
    up_and_down = params.schedule in UP_AND_DOWN
    unread = {
        "momentum": params.momentum and params.optimizer not in BY_GRADIENT and f"optimizer {params.optimizer}",
        "offset_rate": params.offset_rate != 1
        and params.optimizer not in BY_GRADIENT
        and f"optimizer {params.optimizer}",
        "kernel_rate": params.kernel_rate != 1 and params.optimizer != "muon" and f"optimizer {params.optimizer}",
        "weight_decay": params.weight_decay and params.optimizer == "adam" and "optimizer adam; adamw has it",
        "warmup_epochs": params.warmup_epochs and up_and_down and f"{params.schedule}, which warms up",
    }
    sentences = [f"train.{key} has no effect with {reason}" for key, reason in unread.items() if reason]
    if params.warmup_epochs >= epochs and not up_and_down:
        sentences.append(
            f"train.warmup_epochs is {params.warmup_epochs:g} of {epochs} epochs: the learning rate reaches "
            "train.learning_rate at the very end, if at all"
        )
    return sentences


def build_optimizer(params: OptimizationParams) -> keras.optimizers.Optimizer:
    """Return the Keras optimizer. The training loop sets its learning rate in each step."""
    # Here, because importing this module must not load TensorFlow before `runtime.start`.
    import keras

    from stages.training.fused_adam import FusedAdam, FusedAdamW
    from stages.training.muon import Muon

    clip = params.clip_norm or None
    match params.optimizer:
        case "adam":
            optimizer = FusedAdam(params.learning_rate, global_clipnorm=clip)
        case "adamw":
            optimizer = FusedAdamW(params.learning_rate, weight_decay=params.weight_decay, global_clipnorm=clip)
        case "sgd":
            optimizer = keras.optimizers.SGD(
                params.learning_rate,
                momentum=params.momentum,
                nesterov=params.momentum > 0,
                weight_decay=params.weight_decay or None,
                global_clipnorm=clip,
            )
        case "muon":
            optimizer = Muon(
                params.learning_rate,
                params.kernel_rate,
                momentum=params.momentum,
                nesterov=params.momentum > 0,
                weight_decay=params.weight_decay or None,
                global_clipnorm=clip,
            )
    if keras.config.dtype_policy().compute_dtype == "float16":
        # Small gradients underflow in float16: the loss is scaled up and the gradients are scaled back.
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    return optimizer


def learning_rates(params: OptimizationParams, steps_per_epoch: int, epochs: int) -> NDArray[np.float32]:
    """Return the learning rate of each step of the whole run, float32 (epochs * steps_per_epoch,).

    constant: no change. cosine: half a cosine down to zero (Loshchilov and Hutter 2017, without restarts).
    one_cycle: linear up over the first 30 %, then a cosine down to zero (after Smith and Topin 2018). step:
    a tenth after half of the run, a hundredth after three quarters (as He et al. 2016 did on CIFAR-10). triangle:
    linear up over the first 20 %, linear down to zero (as D. Page did on CIFAR-10, 2018).
    """
    steps = steps_per_epoch * epochs
    if up := UP_AND_DOWN.get(params.schedule):
        # Taken at the middle of each step, so that no step has a rate of zero.
        progress = (np.arange(steps) + 0.5) / steps
        fall = (progress - up) / (1 - up)
        down = _cosine(fall) if params.schedule == "one_cycle" else 1 - fall
        factor = np.where(progress < up, progress / up, down)
    else:
        progress = np.arange(steps) / steps  # 0 to just below 1
        factor = {
            "constant": np.ones(steps),
            "cosine": _cosine(progress),
            "step": np.select([progress < 0.5, progress < 0.75], [1.0, 0.1], 0.01),
        }[params.schedule]
        warmup = params.warmup_epochs * steps_per_epoch
        if warmup > 0:
            factor = factor * np.minimum((np.arange(steps) + 1) / warmup, 1.0)
    return (params.learning_rate * factor).astype(np.float32)


def _cosine(progress: NDArray[np.float64]) -> NDArray[np.float64]:
    return (1 + np.cos(math.pi * progress)) / 2

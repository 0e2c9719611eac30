"""The compiled part of training: many steps of forward, backward and update in one call from Python."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from stages.augmentation import augment

if TYPE_CHECKING:
    from stages.engine import TrainParams


class TrainingSteps:
    """Training steps of `model` with `optimizer`, both changed in place."""

    def __init__(self, model: keras.Model, optimizer: keras.optimizers.Optimizer, params: TrainParams) -> None:
        """Prepare the steps; TensorFlow traces them when they are first called with a batch size."""
        self._model, self._optimizer, self._params = model, optimizer, params
        optimizer.build(model.trainable_variables)
        self._loss = keras.losses.CategoricalCrossentropy(label_smoothing=params.label_smoothing)
        # A constant rate is left alone, so that a callback may change it as under `fit`.
        self._scheduled = params.schedule != "constant" or params.warmup_epochs > 0
        # One compiled loop for the full batches and one for the last, smaller batch of an epoch.
        self._loops: dict[int, Any] = {}

    def __call__(
        self,
        images: NDArray[np.float32],
        labels: NDArray[np.float32],
        learning_rates: NDArray[np.float32],
        first: int,
    ) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
        """Take K steps and return each one's mean loss, float32 (K,), and number of hits, int32 (K,).

        images: float32 (K, B, H, W, C); labels: float32 one-hot (K, B, classes); learning_rates: float32
        (K,); first: the number, in the whole run, of the first of the steps.
        """
        size = images.shape[1]
        if size not in self._loops:
            self._loops[size] = tf.function(
                self._loop,
                input_signature=[
                    tf.TensorSpec((None, *images.shape[1:]), tf.float32),
                    tf.TensorSpec((None, *labels.shape[1:]), tf.float32),
                    tf.TensorSpec((None,), tf.float32),
                    tf.TensorSpec((), tf.int32),
                ],
            )
        losses, hits = self._loops[size](images, labels, learning_rates, np.int32(first))
        return losses.numpy(), hits.numpy()

    def _loop(
        self, images: tf.Tensor, labels: tf.Tensor, learning_rates: tf.Tensor, first: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        steps = tf.shape(learning_rates)[0]
        losses = tf.TensorArray(tf.float32, steps)
        hits = tf.TensorArray(tf.int32, steps)
        for index in tf.range(steps):
            if self._scheduled:
                self._optimizer.learning_rate.assign(learning_rates[index])
            loss, correct = self._step(images[index], labels[index], first + index)
            losses = losses.write(index, loss)
            hits = hits.write(index, correct)
        return losses.stack(), hits.stack()

    def _step(self, images: tf.Tensor, labels: tf.Tensor, step: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        images = augment(self._params, images, self._params.seed, step)
        variables = self._model.trainable_variables
        with tf.GradientTape() as tape:
            probabilities = self._model(images, training=True)
            loss = self._loss(labels, probabilities)
            scaled = self._optimizer.scale_loss(loss)
        gradients = tape.gradient(scaled, [variable.value for variable in variables])
        self._optimizer.apply(gradients, variables)
        correct = tf.equal(tf.argmax(probabilities, -1), tf.argmax(labels, -1))
        return loss, tf.reduce_sum(tf.cast(correct, tf.int32))

"""The compiled training loop: many steps of forward pass, backward pass and update in one call from Python.

The replicas of TensorFlow's distribution strategy divide each batch equally. Loss and gradients are summed over
all replicas, so a step computes the same whatever their number (synchronous data parallelism).
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from stages.training.augmentation import augment
from stages.training.fast_dropout import use_fast_dropout
from stages.training.fast_silu import use_fast_silu
from stages.training.fused_batch_norm import fuse_batch_norm
from stages.training.lookahead import Lookahead
from stages.training.optimization import BY_GRADIENT
from stages.training.weight_gradient import use_fast_weight_gradients

if TYPE_CHECKING:
    from stages.training.cluster import Cluster
    from stages.training.params import TrainParams


class TrainingSteps:
    """Training steps of `model` with `optimizer`; both are updated in place."""

    def __init__(
        self,
        model: keras.Model,
        optimizer: keras.optimizers.Optimizer,
        params: TrainParams,
        cluster: Cluster,
        steps: int,
        class_weights: NDArray[np.float32] | None = None,
    ) -> None:
        """Prepare a run of `steps` steps. TensorFlow traces the loop once for each batch size and image size.

        class_weights: factors on the loss of each class's images, float32 (classes,).
        """
        self._class_weights = class_weights
        self._model, self._optimizer, self._params, self._cluster = model, optimizer, params, cluster
        optimizer.build(model.trainable_variables)
        fuse_batch_norm(model)
        use_fast_weight_gradients(model)
        use_fast_silu(model)
        use_fast_dropout(model)
        offsets = {id(layer.beta) for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)}
        self._factors = [
            params.offset_rate if params.optimizer in BY_GRADIENT and id(variable) in offsets else 1.0
            for variable in model.trainable_variables
        ]
        if cluster.replicas > 1:
            # The step sums the gradients itself, before clipping; Keras would sum them a second time.
            inner = getattr(optimizer, "inner_optimizer", optimizer)
            inner._all_reduce_sum_gradients = lambda gradients_and_variables: gradients_and_variables
        self.lookahead = Lookahead(model, params.lookahead, steps)
        # A constant rate is not assigned, so that a callback may change it, as with `fit`.
        self._scheduled = params.schedule != "constant" or params.warmup_epochs > 0
        # The same layers behind an input of each image size, because a Keras model has one input size.
        self._networks: dict[tuple[int, int], keras.Model] = {model.input_shape[1:3]: model}
        # For each image size, one compiled loop for full batches and one for the smaller last batch of an epoch.
        self._loops: dict[tuple[int, tuple[int, int]], Any] = {}

    def __call__(
        self,
        images: NDArray[np.float32],
        labels: NDArray[np.float32],
        learning_rates: NDArray[np.float32],
        first: int,
        batch: int,
        size: tuple[int, int],
    ) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
        """Take K steps. Return each step's mean loss, float32 (K,), and number of correct images, int32 (K,).

        images: float32 (L, K, n, H, W, C): for each of this worker's L replicas, its n images of each batch (see
        `loop.replica_slices`); labels: float32 one-hot (L, K, n, classes); learning_rates: float32 (K,); first:
        the number of the first step, counted over the whole run; batch: images in a step, over all replicas; size:
        height and width of the images that the network gets, in pixels.
        """
        if (batch, size) not in self._loops:
            if size not in self._networks:
                inputs = keras.Input((*size, images.shape[-1]))
                self._networks[size] = keras.Sequential([inputs, *self._model.layers])
            self._loops[batch, size] = tf.function(
                partial(self._loop, batch=batch, size=size),
                input_signature=[
                    tf.TensorSpec((len(images), None, *images.shape[2:]), tf.float32),
                    tf.TensorSpec((len(labels), None, *labels.shape[2:]), tf.float32),
                    tf.TensorSpec((None,), tf.float32),
                    tf.TensorSpec((), tf.int32),
                ],
            )
        losses, hits = self._loops[batch, size](images, labels, learning_rates, np.int32(first))
        return losses.numpy(), hits.numpy()

    def _loop(
        self,
        images: tf.Tensor,
        labels: tf.Tensor,
        learning_rates: tf.Tensor,
        first: tf.Tensor,
        batch: int,
        size: tuple[int, int],
    ) -> tuple[tf.Tensor, tf.Tensor]:
        strategy = self._cluster.strategy
        steps = tf.shape(learning_rates)[0]
        losses = tf.TensorArray(tf.float32, steps)
        hits = tf.TensorArray(tf.int32, steps)
        for index in tf.range(steps):
            if self._scheduled:
                self._optimizer.learning_rate.assign(learning_rates[index])
            loss, correct = strategy.run(self._step, args=(images, labels, index, first + index, batch, size))
            self.lookahead.after(first + index)
            losses = losses.write(index, strategy.experimental_local_results(loss)[0])
            hits = hits.write(index, strategy.experimental_local_results(correct)[0])
        return losses.stack(), hits.stack()

    def _step(
        self,
        images: tf.Tensor,
        labels: tf.Tensor,
        index: tf.Tensor,
        step: tf.Tensor,
        batch: int,
        size: tuple[int, int],
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Run a step on one replica. Return the loss and the number of correct images of all replicas."""
        replica = tf.distribute.get_replica_context().replica_id_in_sync_group
        local = replica - self._cluster.local_replicas[0]
        images, labels = images[local, index], labels[local, index]
        per_replica = images.shape[0]
        positions = tf.range(per_replica) + replica * per_replica
        counts = tf.cast(positions < batch, tf.float32)
        positions_in_batch = tf.minimum(positions, batch - 1)
        images = augment(self._params, images, self._params.seed, step, positions_in_batch, batch, size)
        variables = self._model.trainable_variables
        with tf.GradientTape() as tape:
            probabilities = self._networks[size](images, training=True)
            loss = tf.reduce_sum(counts * self._loss(labels, probabilities)) / batch
            scaled = self._optimizer.scale_loss(loss)
        gradients = tape.gradient(scaled, [variable.value for variable in variables])
        correct = tf.equal(tf.argmax(probabilities, -1), tf.argmax(labels, -1))
        hits = tf.reduce_sum(counts * tf.cast(correct, tf.float32))
        if self._cluster.replicas > 1:
            *gradients, loss, hits = tf.distribute.get_replica_context().all_reduce(
                tf.distribute.ReduceOp.SUM, [*gradients, loss, hits]
            )
        self._optimizer.apply(
            [
                each if factor == 1 else each * factor
                for each, factor in zip(gradients, self._factors, strict=True)
            ],
            variables,
        )
        return loss, tf.cast(hits, tf.int32)

    def _loss(self, labels: tf.Tensor, probabilities: tf.Tensor) -> tf.Tensor:
        """Return the cross-entropy of each image in nats, times the weight of its class, float32 (n,)."""
        smoothing = self._params.label_smoothing
        loss = keras.losses.categorical_crossentropy(labels, probabilities, label_smoothing=smoothing)
        return loss if self._class_weights is None else loss * tf.reduce_sum(labels * self._class_weights, axis=-1)

"""The compiled part of training: many steps of forward, backward and update in one call from Python.

A batch is shared equally by the devices of TensorFlow's strategy. Loss and gradients are sums over all of them, so
that a step means the same however many there are.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from stages.training.augmentation import augment
from stages.training.fused_batch_norm import fuse_batch_norm
from stages.training.lookahead import Lookahead
from stages.training.weight_gradient import quicken_weight_gradients

if TYPE_CHECKING:
    from stages.training.cluster import Cluster
    from stages.training.params import TrainParams


class TrainingSteps:
    """Training steps of `model` with `optimizer`, both changed in place."""

    def __init__(
        self,
        model: keras.Model,
        optimizer: keras.optimizers.Optimizer,
        params: TrainParams,
        cluster: Cluster,
        steps: int,
    ) -> None:
        """Prepare a run of so many `steps`; TensorFlow traces one when it is first called with a batch size."""
        self._model, self._optimizer, self._params, self._cluster = model, optimizer, params, cluster
        optimizer.build(model.trainable_variables)
        fuse_batch_norm(model)
        quicken_weight_gradients(model)
        # Of plain SGD a gradient twice as large is a learning rate twice as high.
        offsets = {id(layer.beta) for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)}
        self._factors = [
            params.offset_rate if params.optimizer == "sgd" and id(variable) in offsets else 1.0
            for variable in model.trainable_variables
        ]
        if cluster.replicas > 1:
            # The step sums the gradients itself, before they are clipped; Keras would again, after that.
            inner = getattr(optimizer, "inner_optimizer", optimizer)
            inner._all_reduce_sum_gradients = lambda gradients_and_variables: gradients_and_variables
        self.lookahead = Lookahead(model, params.lookahead, steps)
        # A constant rate is left alone, so that a callback may change it as under `fit`.
        self._scheduled = params.schedule != "constant" or params.warmup_epochs > 0
        # The same layers for each size of images: Keras fixes that of a network's input.
        self._networks: dict[tuple[int, int], keras.Model] = {model.input_shape[1:3]: model}
        # One compiled loop for the full batches and one for the last, smaller batch of an epoch, of each size.
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
        """Take K steps and return each one's mean loss, float32 (K,), and number of hits, int32 (K,).

        images: float32 (L, K, n, H, W, C), of each of this process's L devices its n images of each batch, as
        `engine.shares` says which; labels: float32 one-hot (L, K, n, classes); learning_rates: float32 (K,);
        first: the number, in the whole run, of the first of the steps; batch: images of each step on all devices
        together; size: the height and width that the network is to see, in pixels.
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
        """One device's part of a step; loss and hits are those of all devices."""
        replica = tf.distribute.get_replica_context().replica_id_in_sync_group
        local = replica - self._cluster.local_replicas[0]
        images, labels = images[local, index], labels[local, index]
        share = images.shape[0]
        places = tf.range(share) + replica * share
        counts = tf.cast(places < batch, tf.float32)
        places_in_batch = tf.minimum(places, batch - 1)
        images = augment(self._params, images, self._params.seed, step, places_in_batch, batch, size)
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
        """Cross-entropy of each image in nats, float32 (n,)."""
        smoothing = self._params.label_smoothing
        return keras.losses.categorical_crossentropy(labels, probabilities, label_smoothing=smoothing)

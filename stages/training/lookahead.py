"""Lookahead averaging: a slow copy of the weights, which the weights are reset to at regular intervals."""

import keras
import tensorflow as tf

STRENGTH = 0.95  # decay of the slow weights per step, at the end of the run


class Lookahead:
    """The slow copy of a model's weights, running means and variances.

    Every `every` steps, both the slow and the fast weights become d * slow + (1 - d) * fast, where
    d = 0.95 ** every * progress ** 3 (K. Jordan 2024, a variant of Zhang et al. 2019).
    """

    def __init__(self, model: keras.Model, every: int, steps: int) -> None:
        """Copy the current weights. `steps` is the length of the whole run."""
        self._every, self._steps = every, steps
        # Frozen layers keep their exact values.
        self._fast = [weight for layer in model.layers if layer.trainable for weight in layer.weights]
        self.slow = [tf.Variable(weight.value) for weight in self._fast] if every else []

    def after(self, step: tf.Tensor) -> None:
        """Update the weights if this is due after step number `step`, int32, counted from 0. For graph mode."""
        if self._every and tf.equal((step + 1) % self._every, 0):
            progress = tf.cast(step + 1, tf.float32) / self._steps
            kept = STRENGTH**self._every * progress**3
            for slow, fast in zip(self.slow, self._fast, strict=True):
                slow.assign(kept * slow + (1 - kept) * fast.value)
                fast.value.assign(slow)

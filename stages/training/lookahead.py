"""Weights that follow a slower copy of themselves, the more so the nearer the end of the run."""

import keras
import tensorflow as tf

STRENGTH = 0.95  # a step's part of the slow weights that a step keeps at the very end


class Lookahead:
    """The slow copy of a model's weights, running means and variances.

    Every `every` steps the slow weights move toward the fast ones, and these go on from there: slow and fast
    become d * slow + (1 - d) * fast, with d = 0.95 ** every * progress ** 3 (K. Jordan 2024, a variant of Zhang et
    al. 2019).
    """

    def __init__(self, model: keras.Model, every: int, steps: int) -> None:
        """Begin with the weights as they are; `steps` is the length of the whole run."""
        self._every, self._steps = every, steps
        # What is frozen stays as it is, to the last bit.
        self._fast = [weight for layer in model.layers if layer.trainable for weight in layer.weights]
        self.slow = [tf.Variable(weight.value) for weight in self._fast] if every else []

    def after(self, step: tf.Tensor) -> None:
        """Do what is due after the step with the number `step`, int32, counted from 0; in graph mode."""
        if self._every and tf.equal((step + 1) % self._every, 0):
            progress = tf.cast(step + 1, tf.float32) / self._steps
            kept = STRENGTH**self._every * progress**3
            for slow, fast in zip(self.slow, self._fast, strict=True):
                slow.assign(kept * slow + (1 - kept) * fast.value)
                fast.value.assign(slow)

"""Muon: the momentum of each convolution's kernel is orthogonalized before the step; SGD does the rest.

After K. Jordan's airbench94_muon (2024): a kernel is treated as a matrix with a column per filter. It is scaled to
the norm sqrt(filters) in each step, so the learning rate of kernels says how far they turn. The iteration is a
fixed number of matrix products, in float32 whatever the precision, and the only state is the momentum, so runs
repeat exactly.
"""

from typing import Any

import keras
import tensorflow as tf

STEPS = 3  # of the Newton-Schulz iteration
# Of the odd polynomial a x + b x^3 + c x^5, chosen for a steep slope at zero: it does not converge to 1.
A, B, C = 3.4445, -4.7750, 2.0315
MOMENTUM = 0.6  # of the kernels, Nesterov's


def orthogonalized(matrix: tf.Tensor) -> tf.Tensor:
    """Return U S V' for `matrix` U D V', float32 (m, n), with the singular values S within about a half of 1."""
    tall = matrix.shape[0] > matrix.shape[1]
    found = matrix / (tf.norm(matrix) + 1e-7)
    for _ in range(STEPS):
        # The smaller of the two Gram matrices.
        gram = tf.matmul(found, found, transpose_a=tall, transpose_b=not tall)
        polynomial = B * gram + C * tf.matmul(gram, gram)
        found = A * found + (tf.matmul(found, polynomial) if tall else tf.matmul(polynomial, found))
    return found


class Muon(keras.optimizers.SGD):
    """SGD with Nesterov momentum and decoupled weight decay; kernels of convolutions turn by Muon's rule."""

    def __init__(self, learning_rate: float, kernel_rate: float, **options: Any) -> None:
        """Set the factor on `learning_rate` for kernels of convolutions; `options` are those of SGD."""
        super().__init__(learning_rate, **options)
        self.kernel_rate = kernel_rate

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """Update `variable` in place. Keras calls this for each variable, in graph mode."""
        if len(variable.shape) != 4:
            super().update_step(gradient, variable, learning_rate)
            return
        filters = variable.shape[-1]
        momentum = self.momentums[self._get_variable_index(variable)]
        gradient, kernel = tf.cast(gradient, tf.float32), tf.convert_to_tensor(variable)
        mean = MOMENTUM * tf.convert_to_tensor(momentum) + gradient
        turn = orthogonalized(tf.reshape(gradient + MOMENTUM * mean, (-1, filters)))
        rate = tf.cast(learning_rate, tf.float32) * self.kernel_rate
        self.assign(momentum, mean)
        # The norm is set anew in each step, so weight decay has no effect on kernels.
        self.assign(variable, kernel * (filters**0.5 / tf.norm(kernel)) - rate * tf.reshape(turn, kernel.shape))

"""stages/training/muon.py: orthogonalized steps of kernels, and SGD for everything else."""

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from numpy.typing import NDArray

from stages.training.muon import MOMENTUM, STEPS, A, B, C, Muon, orthogonalized

pytestmark = pytest.mark.usefixtures("started")

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("shape", [(27, 8), (8, 27), (9, 9)])
def test_singular_vectors_stay_and_singular_values_follow_the_polynomial(shape: tuple[int, int]) -> None:
    matrix = RNG.normal(size=shape).astype(np.float32)
    left, values, right = np.linalg.svd(matrix, full_matrices=False)
    values = values / np.linalg.norm(values)
    for _ in range(STEPS):
        values = A * values + B * values**3 + C * values**5
    found = orthogonalized(tf.constant(matrix)).numpy()
    np.testing.assert_allclose(found, (left * values) @ right, rtol=1e-4, atol=1e-5)


def test_a_kernel_without_gradient_keeps_its_direction() -> None:
    kernel = keras.Variable(RNG.normal(size=(3, 3, 2, 4)).astype(np.float32))
    start = kernel.numpy()
    stepped([kernel], [np.zeros(kernel.shape, np.float32)])
    np.testing.assert_allclose(kernel.numpy(), start * 2 / np.linalg.norm(start), rtol=1e-5)


def test_a_kernel_moves_by_its_own_rate_times_the_orthogonalized_nesterov_momentum() -> None:
    start = RNG.normal(size=(3, 3, 2, 4)).astype(np.float32)
    gradients = [RNG.normal(size=start.shape).astype(np.float32) for _ in range(2)]
    kernel = keras.Variable(start)
    stepped([kernel], *[[gradient] for gradient in gradients])
    mean: Any = 0
    expected: Any = start
    for gradient in gradients:
        mean = MOMENTUM * mean + gradient
        turn = orthogonalized(tf.constant((gradient + MOMENTUM * mean).reshape(-1, 4))).numpy()
        expected = expected * 2 / np.linalg.norm(expected) - 0.1 * 3 * turn.reshape(start.shape)
    np.testing.assert_allclose(kernel.numpy(), expected, rtol=1e-4, atol=1e-5)


def test_everything_else_takes_the_steps_of_sgd() -> None:
    start = [RNG.normal(size=shape).astype(np.float32) for shape in [(4,), (5, 7)]]
    gradients = [[RNG.normal(size=each.shape).astype(np.float32) for each in start] for _ in range(3)]
    found, wanted = ([keras.Variable(each) for each in start] for _ in range(2))
    stepped(found, *gradients)
    sgd = keras.optimizers.SGD(0.1, momentum=0.9, nesterov=True, weight_decay=0.01)
    sgd.build(wanted)
    for each in gradients:
        sgd.apply([tf.constant(gradient) for gradient in each], wanted)
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose(one.numpy(), other.numpy(), rtol=1e-5)


def stepped(variables: list[keras.Variable], *gradients: list[NDArray[np.float32]]) -> None:
    """Take a step with each list of gradients."""
    optimizer = Muon(0.1, kernel_rate=3, momentum=0.9, nesterov=True, weight_decay=0.01)
    optimizer.build(variables)
    apply = tf.function(lambda each: optimizer.apply(each, variables))
    for each in gradients:
        apply([tf.constant(gradient) for gradient in each])

"""stages/training/lookahead.py: when the weights meet their slow copy, and what becomes of both."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from stages.training.lookahead import Lookahead

pytestmark = pytest.mark.usefixtures("started")


def network() -> keras.Model:
    return keras.Sequential(
        [
            keras.Input((3,)),
            keras.layers.Dense(2, trainable=False),
            keras.layers.Dense(2),
            keras.layers.BatchNormalization(),
        ]
    )


def test_every_so_many_steps_both_become_their_weighted_mean() -> None:
    model = network()
    lookahead = Lookahead(model, every=2, steps=4)
    after = tf.function(lookahead.after)
    layer = model.layers[1]
    start, fast = layer.kernel.numpy(), [np.full((2, 2), value, np.float32) for value in (1, 2, 3, 4)]
    layer.kernel.assign(fast[0])
    after(tf.constant(0))
    np.testing.assert_array_equal(layer.kernel.numpy(), fast[0])
    layer.kernel.assign(fast[1])
    after(tf.constant(1))
    kept = 0.95**2 * 0.5**3
    halfway = kept * start + (1 - kept) * fast[1]
    np.testing.assert_allclose(layer.kernel.numpy(), halfway, rtol=1e-6)
    layer.kernel.assign(fast[3])
    after(tf.constant(3))
    np.testing.assert_allclose(layer.kernel.numpy(), 0.95**2 * halfway + (1 - 0.95**2) * fast[3], rtol=1e-6)


def test_running_statistics_take_part_and_frozen_weights_do_not() -> None:
    model = network()
    lookahead = Lookahead(model, every=1, steps=1)
    assert len(lookahead.slow) == 2 + 4
    for weight in model.weights:
        weight.assign(weight + 0.1)
    frozen = model.layers[0].get_weights()
    tf.function(lookahead.after)(tf.constant(0))
    np.testing.assert_allclose(model.layers[2].moving_mean.numpy(), 0.05 * 0.1, rtol=1e-5)
    for found, wanted in zip(model.layers[0].get_weights(), frozen, strict=True):
        np.testing.assert_array_equal(found, wanted)


def test_off_keeps_no_copy_and_changes_nothing() -> None:
    model = network()
    lookahead = Lookahead(model, every=0, steps=1)
    assert lookahead.slow == []
    before = model.get_weights()
    tf.function(lookahead.after)(tf.constant(0))
    for found, wanted in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(found, wanted)

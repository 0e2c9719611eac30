"""training/optimization.py and training/fused_adam.py: the learning rate of each step, and Keras's arithmetic."""

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from numpy.typing import NDArray
from pydantic import ValidationError

from stages.training.fused_adam import FusedAdam, FusedAdamW
from stages.training.optimization import OptimizationParams, build_optimizer, learning_rates, notes

PEAK = 0.1
CONSTANT = OptimizationParams(
    optimizer="adam",
    learning_rate=PEAK,
    schedule="constant",
    warmup_epochs=0,
    momentum=0,
    weight_decay=0,
    clip_norm=0,
    offset_rate=1,
    kernel_rate=1,
    lookahead=0,
)
SCHEDULES = ["constant", "cosine", "one_cycle", "step", "triangle"]


def rates(schedule: str, steps_per_epoch: int, epochs: int, warmup_epochs: float = 0) -> NDArray[np.float32]:
    params = CONSTANT.model_copy(update={"schedule": schedule, "warmup_epochs": warmup_epochs})
    return learning_rates(params, steps_per_epoch, epochs)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_each_step_of_the_run_has_a_rate(schedule: str) -> None:
    given = rates(schedule, 7, 3)
    assert given.shape == (21,)
    assert given.dtype == np.float32


@pytest.mark.parametrize("warmup_epochs", [0, 0.3, 2])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_rate_is_above_zero_and_none_above_the_one_named(schedule: str, warmup_epochs: float) -> None:
    for steps in range(1, 100):
        given = rates(schedule, steps, 1, warmup_epochs)
        assert (given > 0).all(), steps
        assert (given <= np.float32(PEAK)).all(), steps


def test_constant_stays() -> None:
    np.testing.assert_array_equal(rates("constant", 5, 4), np.float32(PEAK))


def test_triangle_rises_over_a_fifth_of_the_run_and_falls_to_zero_in_straight_lines() -> None:
    given = rates("triangle", 25, 4)
    np.testing.assert_allclose(given[[0, 9, 10, 19]], PEAK * np.array([0.025, 0.475, 0.525, 0.975]), rtol=1e-5)
    np.testing.assert_allclose(given[[20, 60, 99]], PEAK * np.array([159, 79, 1]) / 160, rtol=1e-5)


def test_cosine_starts_at_the_peak_and_falls_along_half_a_cosine() -> None:
    given = rates("cosine", 25, 4)
    assert given[0] == np.float32(PEAK)
    assert (np.diff(given) < 0).all()
    np.testing.assert_allclose(given[[25, 50, 75]], PEAK * np.array([0.853553, 0.5, 0.146447]), rtol=1e-5)
    assert given[-1] < PEAK / 1000


def test_step_falls_to_a_tenth_after_half_and_to_a_hundredth_after_three_quarters() -> None:
    expected = np.repeat([PEAK, PEAK / 10, PEAK / 100], [10, 5, 5])
    np.testing.assert_allclose(rates("step", 5, 4), expected, rtol=1e-6)


def test_one_cycle_climbs_in_equal_steps_for_three_tenths_of_the_run() -> None:
    climb = rates("one_cycle", 25, 4)[:30]
    np.testing.assert_allclose(np.diff(climb), PEAK / 30, rtol=1e-4)


def test_one_cycle_starts_half_a_step_above_zero() -> None:
    np.testing.assert_allclose(rates("one_cycle", 25, 4)[0], PEAK / 60, rtol=1e-6)


def test_one_cycle_comes_close_to_the_peak_at_three_tenths() -> None:
    given = rates("one_cycle", 25, 4)
    assert given.argmax() == 30
    np.testing.assert_allclose(given[30], PEAK, rtol=1e-3)


def test_one_cycle_falls_from_there_to_nearly_zero() -> None:
    fall = rates("one_cycle", 25, 4)[30:]
    assert (np.diff(fall) < 0).all()
    np.testing.assert_allclose(fall[35], PEAK / 2, rtol=0.03)
    assert fall[-1] < PEAK / 1000


@pytest.mark.parametrize("schedule", ["constant", "cosine", "step"])
def test_warm_up_climbs_in_equal_shares_of_the_schedule_and_then_leaves_it_alone(schedule: str) -> None:
    shares = rates(schedule, 10, 4, warmup_epochs=1.5) / rates(schedule, 10, 4)
    np.testing.assert_allclose(shares[:15], np.arange(1, 16) / 15, rtol=1e-5)
    np.testing.assert_array_equal(shares[15:], 1)


def test_one_cycle_has_its_own_warm_up() -> None:
    np.testing.assert_array_equal(rates("one_cycle", 10, 4, warmup_epochs=1.5), rates("one_cycle", 10, 4))


def trained(optimizer: keras.optimizers.Optimizer) -> list[NDArray[Any]]:
    """Return weights, moments and step count after 20 steps on gradients that grow, at changing rates."""
    generator = np.random.default_rng(0)
    shapes = [(3, 3, 2, 4), (4,), (5, 7)]
    variables = [keras.Variable(generator.normal(size=shape).astype(np.float32)) for shape in shapes]
    optimizer.build(variables)

    def step(gradients: Any, rate: Any) -> None:
        optimizer.learning_rate.assign(rate)
        optimizer.apply(gradients, variables)

    compiled = tf.function(step)
    for number in range(20):
        gradients = [tf.constant(number * generator.normal(size=shape), tf.float32) for shape in shapes]
        compiled(gradients, tf.constant(0.01 / (1 + number)))
    return [variable.numpy() for variable in [*variables, *optimizer.variables]]


@pytest.mark.usefixtures("started")
@pytest.mark.parametrize("clip", [None, 30.0])
@pytest.mark.parametrize(
    ("fused", "reference", "options"),
    [
        (FusedAdam, keras.optimizers.Adam, {}),
        (FusedAdam, keras.optimizers.Adam, {"weight_decay": 0.1}),
        (FusedAdamW, keras.optimizers.AdamW, {"weight_decay": 0}),
        (FusedAdamW, keras.optimizers.AdamW, {"weight_decay": 0.1}),
        (FusedAdamW, keras.optimizers.AdamW, {"beta_1": 0.8, "beta_2": 0.95, "epsilon": 1e-4}),
    ],
)
def test_the_fused_update_is_that_of_keras(fused: Any, reference: Any, options: Any, clip: float | None) -> None:
    expected = trained(reference(global_clipnorm=clip, **options))
    for found, value in zip(trained(fused(global_clipnorm=clip, **options)), expected, strict=True):
        np.testing.assert_allclose(found, value, rtol=2e-5, atol=1e-6)


@pytest.mark.usefixtures("started")
@pytest.mark.parametrize(
    ("choices", "expected"),
    [
        ({}, lambda: keras.optimizers.Adam(PEAK)),
        ({"weight_decay": 0.1, "momentum": 0.9}, lambda: keras.optimizers.Adam(PEAK)),
        ({"clip_norm": 30}, lambda: keras.optimizers.Adam(PEAK, global_clipnorm=30)),
        (
            {"optimizer": "adamw", "weight_decay": 0.1, "clip_norm": 30},
            lambda: keras.optimizers.AdamW(PEAK, weight_decay=0.1, global_clipnorm=30),
        ),
        ({"optimizer": "sgd"}, lambda: keras.optimizers.SGD(PEAK)),
        (
            {"optimizer": "sgd", "momentum": 0.9, "weight_decay": 0.1, "clip_norm": 30},
            lambda: keras.optimizers.SGD(PEAK, momentum=0.9, nesterov=True, weight_decay=0.1, global_clipnorm=30),
        ),
    ],
)
def test_params_choose_the_optimizer_and_only_the_keys_that_it_has(choices: dict[str, Any], expected: Any) -> None:
    built = build_optimizer(CONSTANT.model_copy(update=choices))
    for found, value in zip(trained(built), trained(expected()), strict=True):
        np.testing.assert_allclose(found, value, rtol=2e-5, atol=1e-6)


def test_an_offset_s_own_rate_and_a_clipped_norm_are_refused_together() -> None:
    choices = {**CONSTANT.model_dump(), "optimizer": "sgd", "offset_rate": 64.0, "clip_norm": 1.0}
    with pytest.raises(ValidationError, match="clip_norm and offset_rate do not go together; set clip_norm: 0 or"):
        OptimizationParams(**choices)
    OptimizationParams(**{**choices, "clip_norm": 0.0})
    OptimizationParams(**{**choices, "offset_rate": 1.0})


@pytest.mark.usefixtures("started")
def test_the_learning_rate_of_the_params_is_the_optimizers() -> None:
    assert float(build_optimizer(CONSTANT).learning_rate) == np.float32(PEAK)


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"momentum": 0.9}, "momentum"),
        ({"momentum": 0.9, "optimizer": "adamw"}, "momentum"),
        ({"weight_decay": 0.1}, "weight_decay"),
        ({"kernel_rate": 2}, "kernel_rate"),
        ({"warmup_epochs": 1, "schedule": "one_cycle"}, "warmup_epochs"),
    ],
)
def test_a_key_without_effect_is_named(changes: dict[str, Any], key: str) -> None:
    (sentence,) = notes(CONSTANT.model_copy(update=changes), epochs=3)
    assert sentence.startswith(f"train.{key} has no effect with ")


def test_a_warm_up_as_long_as_the_run_is_named() -> None:
    (sentence,) = notes(CONSTANT.model_copy(update={"warmup_epochs": 3}), epochs=3)
    assert sentence.startswith("train.warmup_epochs is 3 of 3 epochs")


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"momentum": 0.9, "weight_decay": 0.1, "optimizer": "sgd"},
        {"weight_decay": 0.1, "optimizer": "adamw"},
        {"warmup_epochs": 1, "schedule": "cosine"},
    ],
)
def test_a_key_that_counts_is_not_named(changes: dict[str, Any]) -> None:
    assert notes(CONSTANT.model_copy(update=changes), epochs=3) == []

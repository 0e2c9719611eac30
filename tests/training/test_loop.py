"""training/loop.py and training/step.py: the order, the steps, and exactness across an interruption."""

import mmap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from stages.common.failure import StageError
from stages.common.splits import Split
from stages.model.networks import Block, FastParams, TutorialParams, build_model
from stages.training.checkpoints import Checkpoints
from stages.training.cluster import alone
from stages.training.loop import Trainer, epoch_order
from stages.training.params import TrainParams
from stages.training.step import TrainingSteps

pytestmark = pytest.mark.usefixtures("started")

PLAIN: dict[str, Any] = {
    "seed": 3,
    "epochs": 3,
    "batch_size": 16,
    "optimizer": "adam",
    "learning_rate": 0.01,
    "schedule": "constant",
    "warmup_epochs": 0,
    "momentum": 0,
    "weight_decay": 0,
    "clip_norm": 0,
    "label_smoothing": 0,
    "class_weights": "none",
    "offset_rate": 1,
    "kernel_rate": 1,
    "lookahead": 0,
    "flip": False,
    "shift": 0,
    "resized_crop": 0,
    "rotation": 0,
    "color_jitter": 0,
    "cutout": 0,
    "mixup": 0,
    "scales": [1],
    "early_stopping": 0,
    "checkpoint_minutes": 1e-9,  # after every call of the compiled steps
    "callbacks": [],
    "start_from": "",
    "start_sha256": "",
    "continue": False,
    "keep_state": False,
}
IMAGES = 1_500  # three calls an epoch, the last with a batch of 12
RNG = np.random.Generator(np.random.PCG64(0))
LABELS = RNG.integers(0, 3, IMAGES)
PIXELS = (RNG.random((IMAGES, 6, 6, 2)) + LABELS[:, None, None, None] * 0.3).astype(np.float32)


def split(images: slice) -> Split:
    return Split(PIXELS[images], np.eye(3, dtype=np.float32)[LABELS[images]], "", mmap.mmap(-1, 1))


def build(dropout: float = 0.3) -> keras.Model:
    keras.utils.set_random_seed(5)
    blocks = [Block(filters=4, layers=1, pool=2, dropout=dropout)]
    params = TutorialParams(
        network="tutorial",
        blocks=blocks,
        kernel=3,
        padding="same",
        activation="relu",
        head="flatten",
        dense=[8],
        dropout=dropout,
    )
    return build_model(params, (6, 6, 2), 3)


def build_fast() -> keras.Model:
    keras.utils.set_random_seed(5)
    params = FastParams(
        network="fast", activation="relu", widths=[8, 12], batch_norm_momentum=0.6, logit_scale=0.1111
    )
    return build_model(params, (6, 6, 2), 3, PIXELS)


def train(
    model: keras.Model, folder: Path, *callbacks: keras.callbacks.Callback, **changes: Any
) -> tuple[list[dict[str, float]], int]:
    params = TrainParams(**{**PLAIN, **changes})
    trainer = Trainer(model, params, split(slice(IMAGES)), split(slice(300)), callbacks, alone())
    return trainer.run(Checkpoints(folder, "k" * 64))


def weights(model: keras.Model) -> list[Any]:
    return [variable.numpy() for variable in model.variables]


class Interrupt(keras.callbacks.Callback):
    """Raises KeyboardInterrupt, as Ctrl-C does, at the given call of one of the callback's methods."""

    def __init__(self, method: str, call: int) -> None:
        super().__init__()
        self.left = [call]

        def count(*arguments: Any, **named: Any) -> None:
            self.left[0] -= 1
            if self.left[0] == 0:
                raise KeyboardInterrupt

        setattr(self, method, count)


def test_an_epoch_s_order_is_a_permutation() -> None:
    assert sorted(epoch_order(0, 0, 1000)) == list(range(1000))


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    assert (epoch_order(1, 2, 50) == epoch_order(1, 2, 50)).all()
    assert (epoch_order(1, 2, 50) != epoch_order(1, 3, 50)).any()
    assert (epoch_order(1, 2, 50) != epoch_order(2, 2, 50)).any()


def test_the_order_is_the_one_that_committed_results_were_made_with() -> None:
    assert epoch_order(0, 0, 10).tolist() == [0, 2, 9, 1, 8, 5, 4, 3, 6, 7]


ADAMW = {"optimizer": "adamw", "weight_decay": 0.01, "schedule": "one_cycle", "clip_norm": 1.0}
SGD = {"optimizer": "sgd", "momentum": 0.9, "schedule": "cosine", "warmup_epochs": 1, "label_smoothing": 0.1}
FAST = {
    "optimizer": "sgd",
    "learning_rate": 0.05,
    "momentum": 0.85,
    "weight_decay": 0.01,
    "offset_rate": 16,
    "lookahead": 4,
    "schedule": "triangle",
    "label_smoothing": 0.2,
    "flip": "alternate",
    "shift": 1,
    "scales": [0.8, 1],
    "batch_size": 100,
}
MUON = {**FAST, "optimizer": "muon", "kernel_rate": 2}
MIXED = {
    "resized_crop": 0.5,
    "rotation": 20,
    "color_jitter": 0.3,
    "cutout": 2,
    "mixup": 0.4,
    "class_weights": "balanced",
}
AUGMENTED = {"flip": True, "shift": 1, "early_stopping": 1, "schedule": "step"}


@pytest.fixture(autouse=True)
def _float32_again() -> Iterator[None]:
    yield
    keras.config.set_dtype_policy("float32")


@pytest.mark.parametrize(
    ("method", "call", "changes"),
    [
        ("on_train_batch_end", 2, {}),
        ("on_train_batch_end", 5, {}),
        ("on_epoch_end", 1, {}),
        ("on_train_batch_end", 5, ADAMW),
        ("on_train_batch_end", 5, SGD),
        ("on_epoch_end", 2, AUGMENTED),
        ("on_train_batch_end", 5, MIXED),
        pytest.param("on_train_batch_end", 5, FAST, marks=pytest.mark.slow),
        ("on_train_batch_end", 7, {**FAST, "precision": "mixed_bfloat16"}),
        pytest.param("on_train_batch_end", 5, MUON, marks=pytest.mark.slow),
        ("on_train_batch_end", 7, {**MUON, "precision": "mixed_bfloat16"}),
    ],
)
def test_an_interrupted_run_ends_as_one_that_was_not(
    tmp_path: Path,
    method: str,
    call: int,
    changes: dict[str, Any],
    capsys: pytest.CaptureFixture[str],
) -> None:
    keras.config.set_dtype_policy(changes.pop("precision", "float32"))
    network = build_fast if changes.get("flip") == "alternate" else build
    undisturbed = network()
    expected = train(undisturbed, tmp_path / "a", **changes)

    with pytest.raises(KeyboardInterrupt):
        train(network(), tmp_path / "b", Interrupt(method, call), **changes)
    model = network()
    model.set_weights([weight * 0 for weight in model.get_weights()])  # so that nothing comes from the seed
    assert train(model, tmp_path / "b", **changes) == expected
    assert "train: resuming after epoch " in capsys.readouterr().err
    for found, wanted in zip(weights(model), weights(undisturbed), strict=True):
        np.testing.assert_array_equal(found, wanted)


def test_checkpoints_are_gone_after_a_successful_run(tmp_path: Path) -> None:
    train(build(), tmp_path / "checkpoints", epochs=1)
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.parametrize("recipe", [FAST, MUON])
def test_the_fast_recipe_learns(tmp_path: Path, recipe: dict[str, Any]) -> None:
    rows, _ = train(build_fast(), tmp_path, **{**recipe, "epochs": 6})
    assert rows[-1]["val_accuracy"] > 0.8


def test_an_offset_s_own_rate_is_that_many_times_the_learning_rate(tmp_path: Path) -> None:
    plain = {"optimizer": "sgd", "batch_size": IMAGES, "epochs": 1, "learning_rate": 0.001}
    models = [build_fast() for _ in range(2)]
    for model, rate in zip(models, (1, 16), strict=True):
        train(model, tmp_path, **{**plain, "offset_rate": rate})
    for one, other in zip(models[0].trainable_variables, models[1].trainable_variables, strict=True):
        factor = 16 if one.path.endswith("beta") else 1
        np.testing.assert_allclose(other.numpy(), one.numpy() * factor, rtol=1e-5, err_msg=one.path)


def test_an_offset_s_own_rate_is_for_sgd_alone(tmp_path: Path) -> None:
    models = [build_fast() for _ in range(2)]
    for model, rate in zip(models, (1, 64), strict=True):
        train(model, tmp_path, optimizer="adam", batch_size=IMAGES, epochs=2, offset_rate=rate)
    for one, other in zip(weights(models[0]), weights(models[1]), strict=True):
        np.testing.assert_array_equal(one, other)


def test_flip_alternate_mirrors_each_image_in_every_second_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    steps = TrainingSteps.__call__

    def watched(self: TrainingSteps, images: Any, *others: Any) -> Any:
        seen.append(images[0, 0].copy())
        return steps(self, images, *others)

    monkeypatch.setattr(TrainingSteps, "__call__", watched)
    train(build(), tmp_path, flip="alternate", epochs=2, batch_size=IMAGES)
    found = [np.empty_like(PIXELS) for _ in seen]
    for epoch, images in enumerate(seen):
        found[epoch][epoch_order(PLAIN["seed"], epoch, IMAGES)] = images
    plain = (found[0] == PIXELS).all(axis=(1, 2, 3))
    np.testing.assert_array_equal(found[0][~plain], PIXELS[~plain][:, :, ::-1])
    np.testing.assert_array_equal(found[1], found[0][:, :, ::-1])
    assert 650 < plain.sum() < 850


def test_the_network_sees_each_size_in_its_part_of_the_run_and_is_saved_as_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, ...]] = []
    loss = TrainingSteps._step

    def watched(self: TrainingSteps, *arguments: Any) -> Any:
        seen.append(arguments[-1])
        return loss(self, *arguments)

    monkeypatch.setattr(TrainingSteps, "_step", watched)  # called once, to be traced, for each size
    model = build_fast()
    before = model.to_json()
    rows, _ = train(model, tmp_path, **{**FAST, "batch_size": IMAGES, "epochs": 4})
    assert list(dict.fromkeys(seen)) == [(5, 5), (6, 6)]
    assert len(rows) == 4
    assert model.to_json() == before


def test_two_runs_of_one_process_end_in_the_same_weights(tmp_path: Path) -> None:
    first, second = build(), build()
    assert train(first, tmp_path) == train(second, tmp_path)
    for found, wanted in zip(weights(first), weights(second), strict=True):
        np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize(
    ("changes", "optimizer"),
    [
        ({}, lambda: keras.optimizers.Adam(0.01)),
        ({"optimizer": "adamw", "weight_decay": 0.1}, lambda: keras.optimizers.AdamW(0.01, weight_decay=0.1)),
        ({"optimizer": "sgd", "momentum": 0.9}, lambda: keras.optimizers.SGD(0.01, momentum=0.9, nesterov=True)),
    ],
)
def test_full_batches_without_dropout_train_as_fit_does(
    tmp_path: Path, changes: dict[str, Any], optimizer: Callable[[], keras.optimizers.Optimizer]
) -> None:
    ours, theirs = build(dropout=0), build(dropout=0)
    rows, _ = train(ours, tmp_path, batch_size=IMAGES, epochs=4, **changes)
    theirs.compile(optimizer=optimizer(), loss="categorical_crossentropy", metrics=["accuracy"])
    data, validation = split(slice(IMAGES)), split(slice(300))
    history = theirs.fit(
        data.images,
        data.labels,
        batch_size=IMAGES,
        epochs=4,
        verbose=0,
        validation_data=(validation.images, validation.labels),
    ).history
    for row, *expected in zip(rows, *(history[name] for name in rows[0]), strict=True):
        assert list(row.values()) == pytest.approx(expected, rel=1e-4)


class Record(keras.callbacks.Callback):
    """Keeps its calls, and asks for the end in the one named."""

    def __init__(self, stop: tuple[str, int] | None = None) -> None:
        super().__init__()
        self.stop = stop
        self.calls: list[tuple[str, int, list[str]]] = []

    def keep(self, call: str, number: int, logs: Any) -> None:
        self.calls.append((call, number, sorted(logs or {})))
        if (call, number) == self.stop:
            self.model.stop_training = True

    def on_train_begin(self, logs: Any = None) -> None:
        self.keep("train begins", 0, None)

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self.keep("epoch begins", epoch, None)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.keep("batch ends", batch, logs)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.keep("epoch ends", epoch, logs)

    def on_train_end(self, logs: Any = None) -> None:
        self.keep("train ends", 0, None)


@pytest.mark.parametrize(
    "stop",
    [None, ("train begins", 0), ("epoch begins", 1), ("batch ends", 0), ("batch ends", 1), ("epoch ends", 1)],
)
def test_callbacks_are_called_and_stop_as_under_fit(tmp_path: Path, stop: tuple[str, int] | None) -> None:
    ours, theirs = Record(stop), Record(stop)
    train(build(), tmp_path, ours, batch_size=700)  # more than IMAGES_PER_CALL: a call for each batch
    model = build()
    model.compile(optimizer="adam", loss="categorical_crossentropy", metrics=["accuracy"])
    data, validation = split(slice(IMAGES)), split(slice(300))
    model.fit(
        data.images,
        data.labels,
        batch_size=700,
        epochs=3,
        verbose=0,
        callbacks=[theirs],
        validation_data=(validation.images, validation.labels),
    )
    assert ours.calls == theirs.calls


@pytest.mark.parametrize(
    ("stop", "killed"),
    [
        (("batch ends", 1), ("on_epoch_end", 1)),  # in the midst of the epoch, which is then not gone on with
        (("epoch ends", 1), ("on_train_end", 1)),
    ],
)
def test_a_stop_is_kept_when_the_run_is_killed_after_it(
    tmp_path: Path, stop: tuple[str, int], killed: tuple[str, int]
) -> None:
    undisturbed = build()
    expected = train(undisturbed, tmp_path / "a", Record(stop), batch_size=500)
    with pytest.raises(KeyboardInterrupt):
        train(build(), tmp_path / "b", Record(stop), Interrupt(*killed), batch_size=500)
    model = build()
    assert train(model, tmp_path / "b", batch_size=500) == expected
    for found, wanted in zip(weights(model), weights(undisturbed), strict=True):
        np.testing.assert_array_equal(found, wanted)


def test_a_callback_that_stops_a_resumed_run_at_its_begin_is_heard(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(build(), tmp_path, Interrupt("on_train_batch_end", 2), batch_size=500)
    assert len(train(build(), tmp_path, Record(("train begins", 0)), batch_size=500)[0]) == 1


def test_a_callback_can_stop_training(tmp_path: Path) -> None:
    model = build()
    stop = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: setattr(model, "stop_training", epoch == 1)
    )
    assert len(train(model, tmp_path, stop, epochs=5)[0]) == 2


def test_a_callback_can_lower_a_constant_learning_rate(tmp_path: Path) -> None:
    seen: list[float] = []

    def halve(epoch: int, logs: Any) -> None:
        model.optimizer.learning_rate = model.optimizer.learning_rate / 2
        seen.append(float(model.optimizer.learning_rate))

    model = build()
    train(model, tmp_path, keras.callbacks.LambdaCallback(on_epoch_end=halve), epochs=3)
    assert seen == pytest.approx([0.005, 0.0025, 0.00125])


def test_early_stopping_ends_the_run_and_keeps_the_best_weights(tmp_path: Path) -> None:
    kept: list[Any] = []
    model = build()
    record = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: kept.append(weights(model)))
    rows, saved = train(model, tmp_path, record, early_stopping=2, epochs=40, learning_rate=0.2)
    best = int(np.argmin([row["val_loss"] for row in rows]))
    assert saved == best
    assert len(rows) == best + 3 < 40
    for found, wanted in zip(weights(model), kept[best], strict=True):
        np.testing.assert_array_equal(found, wanted)


def test_a_loss_that_is_not_finite_names_epoch_and_step(tmp_path: Path) -> None:
    model = build()
    poison = keras.callbacks.LambdaCallback(
        on_epoch_begin=lambda epoch, logs: epoch == 1 and model.layers[-1].kernel.assign(np.full((8, 3), np.nan))
    )
    with pytest.raises(StageError, match=r"the loss is nan in epoch 2, step 1; no model was written"):
        train(model, tmp_path, poison)


def test_weights_that_the_last_step_spoilt_are_noticed_before_a_model_is_written(tmp_path: Path) -> None:
    model = build()
    spoil = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: model.layers[-1].kernel.assign(np.full((8, 3), np.nan))
    )
    with pytest.raises(StageError, match=r"the validation loss is nan after epoch 1; no model was written"):
        train(model, tmp_path, spoil, batch_size=IMAGES)


def without_validation(
    model: keras.Model, folder: Path, *callbacks: keras.callbacks.Callback
) -> list[dict[str, float]]:
    trainer = Trainer(model, TrainParams(**PLAIN), split(slice(IMAGES)), split(slice(0)), callbacks, alone())
    return trainer.run(Checkpoints(folder, "k" * 64))[0]


def test_without_validation_images_the_model_is_the_same_and_no_row_has_their_figures(
    tmp_path: Path,
) -> None:
    ours, theirs = build(), build()
    rows, expected = without_validation(ours, tmp_path / "ours"), train(theirs, tmp_path)[0]
    assert rows == [{name: row[name] for name in ("loss", "accuracy")} for row in expected]
    for found, wanted in zip(weights(ours), weights(theirs), strict=True):
        np.testing.assert_array_equal(found, wanted)


def test_without_validation_images_spoilt_weights_are_noticed_too(tmp_path: Path) -> None:
    model = build()
    spoil = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: (
            batch == 93 and model.layers[-1].kernel.assign(np.full((8, 3), np.inf))
        ),
    )
    with pytest.raises(StageError, match=r"a weight is not finite after epoch 1; no model was written"):
        without_validation(model, tmp_path, spoil)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_a_lower_precision_learns_and_repeats_itself(tmp_path: Path, precision: str) -> None:
    keras.config.set_dtype_policy(f"mixed_{precision}")
    try:
        first, second = build(dropout=0.1), build(dropout=0.1)
        with pytest.raises(KeyboardInterrupt):
            train(second, tmp_path / "second", Interrupt("on_train_batch_end", 4), epochs=4)
        rows, _ = train(first, tmp_path / "first", epochs=4)
        assert train(second, tmp_path / "second", epochs=4)[0] == rows
    finally:
        keras.config.set_dtype_policy("float32")
    assert rows[-1]["val_loss"] < 0.9 * rows[0]["val_loss"]
    for found, wanted in zip(weights(first), weights(second), strict=True):
        np.testing.assert_array_equal(found, wanted)

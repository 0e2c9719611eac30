"""The training loop: epoch order, steps, validation, checkpoints, callbacks.

Everything random depends only on the seed and the step, or is saved in the checkpoint. A run that was killed and
resumed therefore ends with the same bytes as an uninterrupted one.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from stages.common.failure import StageError
from stages.common.splits import Split
from stages.training.augmentation import alternate_flips, mixed, mixing_weights, scale_of, scaled_size
from stages.training.checkpoints import Checkpoints, pack, unpack
from stages.training.optimization import build_optimizer, learning_rates
from stages.training.params import TrainParams

if TYPE_CHECKING:
    import keras

    from stages.training.cluster import Cluster

# Images in one call of the compiled steps: enough to make Python's overhead negligible, few enough for Ctrl-C and
# the progress bar to respond within a second. For images of up to `PIXELS`; of larger ones, fewer.
IMAGES_PER_CALL, PIXELS = 640, 32 * 32

DIVERGED = "; no model was written: try a lower train.learning_rate or train.clip_norm"


@dataclass
class Progress:
    """The position in a run: everything that a checkpoint holds apart from arrays."""

    epoch: int = 0
    step: int = 0  # in the epoch
    loss: float = 0.0  # sums over the epoch's images so far
    hits: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    best_epoch: int = -1
    callbacks: list[dict[str, Any]] = field(default_factory=list)
    stopped: bool = False  # by a callback, on any worker


def epoch_order(seed: int, epoch: int, images: int) -> NDArray[np.int64]:
    """Return the order of an epoch's images, a permutation, int64 (images,). It depends only on the arguments.

    It is the sort order of Philox's raw output (Salmon et al. 2011), not `Generator.permutation`, whose stream
    may change between NumPy versions (NEP 19).
    """
    keys = np.random.Philox(key=[seed, epoch]).random_raw(images)
    return np.argsort(keys, kind="stable")


def replica_slices(batch: int, replicas: range, of: int) -> NDArray[np.int64]:
    """Return the indices in the batch of the images of each of `replicas`, out of `of` replicas: int64 (L, n).

    All replicas get the same number. A batch that cannot be divided equally is filled up with its last image. The
    copies do not count in the loss; only that replica's batch-normalization statistics include them.
    """
    each = -(-batch // of)
    places = np.arange(each, dtype=np.int64) + each * np.array(replicas)[:, None]
    return np.asarray(np.minimum(places, batch - 1))


class Trainer:
    """One training run of `model`, which is changed in place."""

    def __init__(
        self,
        model: keras.Model,
        params: TrainParams,
        training: Split,
        validation: Split,
        callbacks: Sequence[keras.callbacks.Callback],
        cluster: Cluster,
        earlier: Sequence[dict[str, float]] = (),
        first: int = 0,
        class_weights: NDArray[np.float32] | None = None,
    ) -> None:
        """Prepare a run on `cluster`, whose strategy is in scope. Nothing is computed before `run`.

        earlier: the rows of an earlier phase of this run, which the history continues. first: the number of epochs
        of the earlier run that this one continues; its rows are not in the history. class_weights: factors on the
        training loss, float32 (classes,); the validation loss has none.
        """
        import keras  # here, because importing this module must not load TensorFlow before `runtime.start`

        from stages.model.inference import Predictor, batch_size, predict_split
        from stages.training.step import TrainingSteps

        self._model, self._params, self._cluster = model, params, cluster
        self._training, self._validation = training, validation
        self._optimizer = build_optimizer(params)
        self._steps_per_epoch = -(-len(training.images) // params.batch_size)
        self._earlier, self._first = list(earlier), first
        self._start = first + len(earlier)  # epochs before this phase
        self._epochs = self._start + params.epochs
        steps = self._steps_per_epoch * self._epochs
        self._steps = TrainingSteps(model, self._optimizer, params, cluster, steps, class_weights)
        self._predict = partial(predict_split, Predictor(model))
        # Whole batches, so that each image is in the same batch whichever worker predicts it.
        self._validated = cluster.worker_slice(len(validation.images), batch_size(model.input_shape[1:]))
        self._rates = learning_rates(params, self._steps_per_epoch, params.epochs)
        model.optimizer, model.stop_training = self._optimizer, False
        self._callbacks = keras.callbacks.CallbackList(
            list(callbacks), model=model, epochs=self._epochs, steps=self._steps_per_epoch
        )
        self._best: list[NDArray[Any]] = []
        self._saved = time.monotonic()

    def run(self, checkpoints: Checkpoints, keep: bool = False) -> tuple[list[dict[str, float]], int]:
        """Train to the end, starting from the last valid checkpoint, if there is one.

        Return one row per epoch, and the index of the row of the epoch whose weights the model has: the best with
        early stopping, otherwise the last. A row has loss and accuracy (over the training batches, with dropout),
        and val_loss and val_accuracy if there are validation images. keep: do not delete the checkpoints at the
        end, so that a second call returns the same at once. Raises `StageError` when the loss or a weight becomes
        NaN or infinite.
        """
        progress = self._resume(checkpoints)
        self._callbacks.on_train_begin()
        self._restore_callbacks(progress)
        while progress.epoch < self._epochs and not self._ended(progress):
            self._train_epoch(progress, checkpoints)
            row = self._end_epoch(progress)
            self._callbacks.on_epoch_end(progress.epoch - 1, row)
            progress.stopped = self._stop()
            self._save(progress, checkpoints)
        if self._params.early_stopping:
            self._assign(self._model.variables, self._best)
        self._callbacks.on_train_end()
        if self._cluster.chief and not keep:
            checkpoints.clear()
        saved = progress.best_epoch if self._params.early_stopping else progress.epoch - 1
        return progress.history, saved - self._first

    def _train_epoch(self, progress: Progress, checkpoints: Checkpoints) -> None:
        self._callbacks.on_epoch_begin(progress.epoch)
        if progress.stopped:
            return  # the checkpoint was written after the callback's stop and before the end of the epoch
        order = epoch_order(self._params.seed, progress.epoch, len(self._training.images))
        scale = scale_of(self._params, progress.epoch, self._epochs)
        size = scaled_size(scale, *self._training.images.shape[1:3])
        for images, labels, batch in self._batches(order, progress.epoch, progress.step):
            first = progress.epoch * self._steps_per_epoch + progress.step
            self._callbacks.on_train_batch_begin(progress.step)
            done = first - self._start * self._steps_per_epoch
            rates = self._rates[done : done + images.shape[1]]
            losses, hits = self._steps(images, labels, rates, first, batch, size)
            self._check_finite(losses, progress)
            progress.step += len(losses)
            progress.loss += float(losses.sum(dtype=np.float64)) * batch
            progress.hits += int(hits.sum())
            self._callbacks.on_train_batch_end(progress.step - 1, self._means(progress))
            progress.stopped = self._stop()
            if time.monotonic() - self._saved > self._params.checkpoint_minutes * 60:
                self._save(progress, checkpoints)
            if progress.stopped:
                break  # like `fit`, which still runs the end of the epoch

    def _batches(
        self, order: NDArray[np.int64], epoch: int, step: int
    ) -> Iterator[tuple[NDArray[np.float32], NDArray[np.float32], int]]:
        """Yield images, labels and batch size for each call of the steps, starting at `step`, one call ahead."""
        size = self._params.batch_size
        mirrored = None
        if self._params.flip == "alternate":
            mirrored = alternate_flips(self._params.seed, epoch, len(order))
        full = len(order) // size
        pixels = math.prod(self._training.images.shape[1:3])
        calls = max(1, min(IMAGES_PER_CALL, IMAGES_PER_CALL * PIXELS // pixels) // size)
        # Calls start at multiples of K full batches, so a resumed epoch makes the same calls.
        spans = [(start * size, min(start + calls, full) * size, size) for start in range(step, full, calls)]
        if len(order) > full * size and step <= full:
            spans.append((full * size, len(order), len(order) - full * size))

        def take(indices: NDArray[np.int64]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
            images, labels = self._training.take(indices)
            if mirrored is not None:
                images[mirrored[indices]] = images[mirrored[indices], :, ::-1]
            return images, labels

        def gather(start: int, stop: int, batch: int) -> tuple[NDArray[np.float32], NDArray[np.float32], int]:
            places = replica_slices(batch, self._cluster.local_replicas, self._cluster.replicas)
            chosen = order[start:stop].reshape(-1, batch)[:, places].swapaxes(0, 1)  # (L, K, n)
            images, labels = take(chosen.ravel())
            if self._params.mixup:
                # The batch with itself in reverse: as good as a random pairing, because the order is random.
                partners = order[start:stop].reshape(-1, batch)[:, batch - 1 - places].swapaxes(0, 1)
                first = epoch * self._steps_per_epoch + start // size
                weights = np.stack(
                    [
                        mixing_weights(self._params, number, batch, self._params.seed)[places]
                        for number in range(first, first + chosen.shape[1])
                    ],
                    axis=1,
                ).ravel()  # of (L, K, n)
                others = take(partners.ravel())
                images, labels = (
                    mixed(weights, one, other) for one, other in zip((images, labels), others, strict=True)
                )
            return (
                images.reshape(*chosen.shape, *images.shape[1:]),
                labels.reshape(*chosen.shape, labels.shape[1]),
                batch,
            )

        if not spans:
            return  # the checkpoint was written after the last batch and before the end of the epoch
        with ThreadPoolExecutor(1, thread_name_prefix="gather") as ahead:
            following = ahead.submit(gather, *spans[0])
            for span in spans[1:]:
                batches, following = following, ahead.submit(gather, *span)
                yield batches.result()
            yield following.result()

    def _check_finite(self, losses: NDArray[np.float32], progress: Progress) -> None:
        if not np.isfinite(losses).all():
            step = progress.step + int(np.argmin(np.isfinite(losses)))
            raise StageError(
                f"the loss is {losses[step - progress.step]} in epoch {progress.epoch + 1}, step {step + 1}"
                f"{DIVERGED}"
            )

    def _means(self, progress: Progress) -> dict[str, float]:
        """Return the mean loss and accuracy over the epoch's images so far."""
        seen = min(progress.step * self._params.batch_size, len(self._training.images))
        return {"loss": progress.loss / seen, "accuracy": progress.hits / seen}

    def _end_epoch(self, progress: Progress) -> dict[str, float]:
        row = {**self._means(progress), **self._validate(progress.epoch)}
        progress.history.append(row)
        if self._params.early_stopping and (
            progress.best_epoch < 0
            or row["val_loss"] < progress.history[progress.best_epoch - self._first]["val_loss"]
        ):
            progress.best_epoch = progress.epoch
            self._best = [variable.numpy() for variable in self._model.variables]
        progress.epoch, progress.step, progress.loss, progress.hits = progress.epoch + 1, 0, 0.0, 0
        return row

    def _validate(self, epoch: int) -> dict[str, float]:
        """Return val_loss, the mean cross-entropy in nats, and val_accuracy; nothing without validation images.

        Raises `StageError` when the last step broke the weights, which it may do after its loss was computed.
        """
        if not len(self._validation.images):
            if not all(np.isfinite(variable.numpy()).all() for variable in self._model.weights):
                raise StageError(f"a weight is not finite after epoch {epoch + 1}{DIVERGED}")
            return {}
        labels = self._validation.labels.argmax(axis=1)
        mine = self._validated
        probabilities = np.zeros(self._validation.labels.shape, np.float32)
        if mine.start < mine.stop:
            probabilities[mine] = self._predict(self._validation, mine)
        probabilities = self._cluster.combine(probabilities)
        chosen = probabilities[np.arange(len(labels)), labels].astype(np.float64)
        # Keras's own bounds, so that the loss matches Keras's.
        loss = float(-np.log(np.clip(chosen, 1e-7, 1 - 1e-7)).mean())
        if not np.isfinite(loss):
            raise StageError(f"the validation loss is {loss} after epoch {epoch + 1}{DIVERGED}")
        return {"val_loss": loss, "val_accuracy": float((probabilities.argmax(axis=1) == labels).mean())}

    def _ended(self, progress: Progress) -> bool:
        """Return whether training ends here although epochs remain."""
        patience = self._params.early_stopping
        impatient = bool(patience) and 0 <= progress.best_epoch < progress.epoch - patience
        return impatient or (progress.stopped and progress.step == 0)

    def _stop(self) -> bool:
        """Return whether a callback on any worker has asked to stop."""
        # A callback may stop one worker alone, for instance by its clock; the others would wait for it forever.
        stops = np.zeros(self._cluster.size, np.int32)
        stops[self._cluster.rank] = bool(self._model.stop_training)
        return bool(self._cluster.combine(stops).any())

    def _state(self) -> list[Any]:
        # A model's variables include the states of its random generators; its weights do not.
        return [*self._model.variables, *self._optimizer.variables, *self._steps.lookahead.slow]

    def state(self) -> bytes:
        """Return what another run needs to go on from here: the variables of model, optimizer and slow weights."""
        return pack([variable.numpy() for variable in self._state()], {})

    def go_on_from(self, state: bytes) -> None:
        """Go on from the `state` of another run, but with this run's learning rate.

        Raises `StageError` when it is that of another optimizer.
        """
        arrays, _ = unpack(state)
        variables = self._state()
        if [array.shape for array in arrays] != [tuple(variable.shape) for variable in variables]:
            raise StageError(
                "train.continue: the earlier model's training state is that of another optimizer; use the same "
                "train.optimizer and lookahead, or set train.continue: false"
            )
        self._assign(variables, arrays)
        self._optimizer.learning_rate.assign(self._params.learning_rate)

    def _save(self, progress: Progress, checkpoints: Checkpoints) -> None:
        if self._cluster.chief:
            progress.callbacks = [_scalars(callback) for callback in self._callbacks.callbacks]
            arrays = [variable.numpy() for variable in self._state()]
            checkpoints.save(progress.epoch, progress.step, [*arrays, *self._best], asdict(progress))
        self._saved = time.monotonic()

    def _resume(self, checkpoints: Checkpoints) -> Progress:
        content = self._cluster.broadcast(checkpoints.latest() if self._cluster.chief else b"")
        progress = Progress(epoch=self._start, history=list(self._earlier))
        if content:
            arrays, state = unpack(content)
            progress = Progress(**state)
            variables = self._state()
            self._assign(variables, arrays[: len(variables)])
            self._best = arrays[len(variables) :]
            if self._cluster.chief:
                print(f"train: resuming after epoch {progress.epoch}, step {progress.step}", file=sys.stderr)
        self._seed_replica_generators()
        return progress

    def _seed_replica_generators(self) -> None:
        """Give each replica its own dropout stream: the generator's state plus the replica's number."""
        weights = {id(weight) for weight in self._model.weights}
        generators = [variable for variable in self._model.variables if id(variable) not in weights]
        for generator in generators:
            seed = generator.numpy()
            replicas = self._cluster.local_replicas
            for replica, state in zip(
                replicas, self._cluster.strategy.experimental_local_results(generator.value), strict=True
            ):
                state.assign(seed + np.array([replica, 0], seed.dtype))

    def _restore_callbacks(self, progress: Progress) -> None:
        # After on_train_begin, which resets the callbacks' counters.
        for callback, state in zip(self._callbacks.callbacks, progress.callbacks, strict=False):
            vars(callback).update(state)
        self._model.stop_training = self._model.stop_training or progress.stopped

    @staticmethod
    def _assign(variables: Sequence[Any], arrays: Sequence[NDArray[Any]]) -> None:
        for variable, array in zip(variables, arrays, strict=True):
            variable.assign(array)


def _scalars(callback: keras.callbacks.Callback) -> dict[str, Any]:
    """Return the attributes of a callback that are plain numbers, strings or booleans, such as counters."""
    return {
        name: value.item() if isinstance(value, np.generic) else value
        for name, value in vars(callback).items()
        if isinstance(value, bool | int | float | str | np.generic)
    }

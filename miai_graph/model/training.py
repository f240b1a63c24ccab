"""compile, fit, evaluate and predict: Keras's loop over epochs and batches, around steps that are one graph each."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from miai_graph import optimizers
from miai_graph.callbacks import Callback, CallbackList, History
from miai_graph.context import current_seed, next_stream
from miai_graph.errors import ArgumentError, FeedError, ModelError
from miai_graph.executor import Executor, as_executor
from miai_graph.feeding import Batch, check_batch
from miai_graph.layers.core import Input
from miai_graph.model.compiled import Compiled
from miai_graph.model.data import (
    Dataset,
    as_arrays,
    as_dataset,
    is_batches,
    split_validation,
    unpack_batch,
    weights_by_class,
)
from miai_graph.model.labels import check_labels_of
from miai_graph.model.steps import RunningTotals, Step, StepBuilder, step_key
from miai_graph.node import Node
from miai_graph.op import Array
from miai_graph.ops.random import generator
from miai_graph.progress import ProgressBar, resolve_verbose

Logs = dict[str, float]


class Training:
    """The part of `Model` that trains, tests and predicts."""

    name: str
    stop_training: bool
    _inputs: list[Node] | None
    _compiled: Compiled | None
    _steps: dict[Any, Step]

    def _reset_training(self, *, keep_compiled: bool = False) -> None:
        if not keep_compiled or not hasattr(self, "_compiled"):
            self._compiled = None
        self._steps = {}

    def compile(
        self,
        optimizer: Any = "rmsprop",
        loss: Any = None,
        loss_weights: Any = None,
        metrics: Any = None,
        weighted_metrics: Any = None,
        *,
        executor: str | Executor = "serial",
    ) -> None:
        """Say how the model is trained. Keras's arguments, and the executor.

        Parameters
        ----------
        optimizer, loss : names or objects; loss may be a list, or a dictionary by output name
        loss_weights : a number for each output's loss
        metrics, weighted_metrics : names or objects, in a list; by output for several. The latter take sample weights.
        executor : the name of one, or one: who runs the steps
        """
        made = optimizers.get(optimizer)
        if made is None:
            raise ArgumentError("expected an optimizer; found None")
        self._compiled = Compiled(made, loss, loss_weights, metrics, weighted_metrics, executor)
        self._steps = {}

    @property
    def compiled(self) -> bool:
        return self._compiled is not None

    @property
    def compiled_arguments(self) -> Compiled:
        """What compile was told."""
        return self._require_compiled()

    @property
    def optimizer(self) -> Any:
        """The optimizer, once the model is compiled."""
        return self._require_compiled().optimizer

    def _require_compiled(self) -> Compiled:
        if self._compiled is None:
            raise ModelError(
                f"expected model {self.name!r} to be compiled; found that it is not. Call model.compile(optimizer, loss)"
            )
        return self._compiled

    # Training

    def fit(
        self,
        x: Any = None,
        y: Any = None,
        batch_size: int | None = None,
        epochs: int = 1,
        verbose: str | int = "auto",
        callbacks: Iterable[Callback] | None = None,
        validation_split: float = 0.0,
        validation_data: Any = None,
        shuffle: bool = True,
        class_weight: Mapping[int, float] | None = None,
        sample_weight: Any = None,
        initial_epoch: int = 0,
        steps_per_epoch: int | None = None,
        validation_steps: int | None = None,
        validation_batch_size: int | None = None,
        validation_freq: int | Sequence[int] = 1,
        *,
        executor: str | Executor | None = None,
    ) -> History:
        """Train on data for a number of epochs. Keras's arguments, and the executor.

        Parameters
        ----------
        x, y : arrays with a sample a row (or lists, or dictionaries by input and output name), or x an iterable of batches
            (x, y) or (x, y, sample_weight)
        batch_size : 32 by default; not for an iterable of batches
        epochs : the number of the last epoch, counted from 1
        verbose : "auto" (a bar on a terminal, else nothing), 0 (nothing), 1 (a bar) or 2 (a line an epoch)
        callbacks : told of each epoch and batch
        validation_split : the share of the samples, from the end, to validate on
        validation_data : (x, y) or (x, y, sample_weight), or an iterable of batches, to validate on
        shuffle : whether the order of the samples is drawn anew in each epoch, from the seed of `set_seed`
        class_weight : how much samples count, by class
        sample_weight : how much each sample counts
        initial_epoch : the number of epochs that are done already
        steps_per_epoch, validation_steps : stop after so many batches
        validation_batch_size : `batch_size` by default
        validation_freq : validate every so many epochs, or after the epochs listed
        executor : overrides compile's

        Returns
        -------
        a `History`: losses and metrics by epoch, and the timing of the steps

        Raises
        ------
        FeedError
            if arrays do not fit, before anything is changed.
        ExecutionError
            if a node fails. The weights are those of the last step that was finished.
        """
        compiled = self._require_compiled()
        source = self._source(x, y, sample_weight, batch_size, class_weight)
        validation = self._validation(source, validation_data, validation_split, validation_batch_size or batch_size)
        if validation_split and isinstance(source, _InMemory):
            source = source.without_validation(validation_split)
        if epochs < initial_epoch or steps_per_epoch == 0:
            raise ArgumentError(f"expected epochs of at least {initial_epoch} and at least one step; found {epochs}")
        step = self._train_step(source.targets, source.weighted, executor or compiled.executor)
        history = History()
        verbosity = resolve_verbose(verbose)
        steps = source.steps if steps_per_epoch is None else min(steps_per_epoch, source.steps or steps_per_epoch)
        bar = ProgressBar(verbosity, source.batch_size, source.samples)
        listeners = CallbackList(
            [history, *(callbacks or []), *([bar] if verbosity else [])],
            self,
            {"verbose": verbosity, "epochs": epochs, "steps": steps},
        )
        step.executable.reset_timing()
        self.stop_training = False
        stream = next_stream() if shuffle else None
        logs: Logs = {}
        try:
            listeners.call("on_train_begin")
            for epoch in range(initial_epoch, epochs):
                listeners.call("on_epoch_begin", epoch)
                order = _order(stream, epoch, source.samples)
                logs = self._run_epoch(step, source.batches(order), steps, listeners, "train")
                if validation is not None and _validates(epoch, validation_freq):
                    figures = self._evaluate(validation, validation_steps, listeners, executor or compiled.executor)
                    logs |= {f"val_{name}": value for name, value in figures.items()}
                listeners.call("on_epoch_end", epoch, logs)
                if self.stop_training:
                    break
        finally:
            bar.close()
        compiled.optimizer.finalize_variable_values(step.parameters)
        history.timing = step.executable.timing
        listeners.call("on_train_end", logs)
        return history

    def _run_epoch(
        self, step: Step, batches: Iterator[tuple[Batch, int]], steps: int | None, listeners: CallbackList, kind: str
    ) -> Logs:
        totals = RunningTotals(step.metrics)
        begin, end = f"on_{kind}_batch_begin", f"on_{kind}_batch_end"
        begins, ends = listeners.listens(begin), listeners.listens(end)
        sizes: list[int] = []

        def feed() -> Iterator[Batch]:
            for number, (batch, size) in enumerate(itertools.islice(batches, steps)):
                sizes.append(size)
                if begins:
                    listeners.call(begin, number, {})
                yield batch

        for number, outputs in enumerate(step.executable.run(feed())):
            totals.add(outputs, sizes[number])
            if ends:
                listeners.call(end, number, totals.logs())
            if kind == "train" and self.stop_training:
                break
        if not sizes:
            raise FeedError("expected at least one batch; found none. An iterator can be used for one epoch only")
        return totals.logs()

    def train_on_batch(
        self, x: Any, y: Any = None, sample_weight: Any = None, class_weight: Any = None, *, return_dict: bool = False
    ) -> Any:
        """One training step on one batch.

        Returns
        -------
        the loss, or a list of it and the metrics if there are any, or with `return_dict` a dictionary by name
        """
        compiled = self._require_compiled()
        source = self._source(x, y, sample_weight, None, class_weight)
        step = self._train_step(source.targets, source.weighted, compiled.executor)
        return self._one_batch(step, source, return_dict)

    def test_on_batch(self, x: Any, y: Any = None, sample_weight: Any = None, *, return_dict: bool = False) -> Any:
        """The loss and metrics of one batch, as `train_on_batch` returns them; nothing is trained."""
        compiled = self._require_compiled()
        source = self._source(x, y, sample_weight, None, None)
        step = self._test_step(source.targets, source.weighted, compiled.executor)
        return self._one_batch(step, source, return_dict)

    def predict_on_batch(self, x: Any) -> Any:
        """The outputs for one batch."""
        return self.predict(x, batch_size=None, verbose=0, whole=True)

    def _one_batch(self, step: Step, source: _Source, return_dict: bool) -> Any:
        assert isinstance(source, _InMemory)
        totals = RunningTotals(step.metrics)
        totals.add(step.executable(*source.dataset.arrays), source.dataset.size)
        logs = totals.logs()
        values = list(logs.values())
        return logs if return_dict else values[0] if len(values) == 1 else values

    # Testing and predicting

    def evaluate(
        self,
        x: Any = None,
        y: Any = None,
        batch_size: int | None = None,
        verbose: str | int = "auto",
        sample_weight: Any = None,
        steps: int | None = None,
        callbacks: Iterable[Callback] | None = None,
        return_dict: bool = False,
        *,
        executor: str | Executor | None = None,
    ) -> Any:
        """The loss and metrics on data. Keras's arguments, and the executor, as for `fit`.

        Returns
        -------
        the loss, or a list of it and the metrics if there are any, or with `return_dict` a dictionary by name
        """
        compiled = self._require_compiled()
        source = self._source(x, y, sample_weight, batch_size, None)
        verbosity = resolve_verbose(verbose)
        bar = ProgressBar(verbosity, source.batch_size, source.samples)
        listeners = CallbackList(
            [*(callbacks or []), *([bar] if verbosity else [])], self, {"verbose": verbosity, "steps": steps or source.steps}
        )
        try:
            logs = self._evaluate(source, steps, listeners, executor or compiled.executor)
        finally:
            bar.close()
        values = list(logs.values())
        return logs if return_dict else values[0] if len(values) == 1 else values

    def _evaluate(
        self, source: _Source, steps: int | None, listeners: CallbackList, executor: str | Executor
    ) -> Logs:
        step = self._test_step(source.targets, source.weighted, executor)
        listeners.call("on_test_begin")
        logs = self._run_epoch(step, source.batches(None), steps, listeners, "test")
        listeners.call("on_test_end", logs)
        return logs

    def predict(
        self,
        x: Any,
        batch_size: int | None = None,
        verbose: str | int = "auto",
        steps: int | None = None,
        callbacks: Iterable[Callback] | None = None,
        *,
        executor: str | Executor | None = None,
        whole: bool = False,
    ) -> Any:
        """The outputs for data, as one array for each output of the model.

        Parameters
        ----------
        x : arrays, or an iterable of batches
        batch_size : 32 by default
        verbose, steps, callbacks, executor : as for `evaluate`
        whole : all samples as one batch
        """
        source = self._source(x, None, None, batch_size, None, is_prediction=True)
        chosen = executor or (self._compiled.executor if self._compiled is not None else "serial")
        verbosity = resolve_verbose(verbose)
        bar = ProgressBar(verbosity, source.batch_size, source.samples)
        listeners = CallbackList(
            [*(callbacks or []), *([bar] if verbosity else [])], self, {"verbose": verbosity, "steps": steps or source.steps}
        )
        step = self._step(("predict",), chosen, lambda builder, who: builder.predict_step(who))
        batches = source.whole() if whole else source.batches(None)
        results: list[list[Array]] = []
        try:
            listeners.call("on_predict_begin")
            for number, outputs in enumerate(step.executable.run(batch for batch, _ in itertools.islice(batches, steps))):
                results.append(outputs)
                listeners.call("on_predict_batch_end", number, {})
            listeners.call("on_predict_end")
        finally:
            bar.close()
        if not results:
            raise FeedError("expected at least one batch to predict; found none")
        joined = [np.concatenate(parts) for parts in zip(*results, strict=True)]
        return joined[0] if self._single_output else joined

    def warmup(self, batch_size: int = 32, *, executor: str | Executor | None = None) -> None:
        """Start the executor and prepare prediction for batches of a size, so that the first batch is as fast as the others.

        The steps of training and testing are prepared too, once the model was trained or tested on data like it.
        """
        chosen = executor or (self._compiled.executor if self._compiled is not None else "serial")
        self._step(("predict",), chosen, lambda builder, who: builder.predict_step(who))
        for (_, who), step in self._steps.items():
            if who is as_executor(chosen):
                step.executable.warmup(batch_size)

    # Steps and data

    _single_output: bool

    def _step(self, kind: tuple[Any, ...], executor: str | Executor, make: Any) -> Step:
        """The step of a kind, built if it is not there yet."""
        chosen = as_executor(executor)
        key = kind, chosen
        if key not in self._steps:
            layer: Any = self
            builder = StepBuilder(layer.inputs, layer.output_names, layer._build_outputs, layer.regularization_losses)
            self._steps[key] = make(builder, chosen)
        return self._steps[key]

    def _train_step(self, targets: Sequence[Array], weighted: bool, executor: str | Executor) -> Step:
        compiled = self._require_compiled()
        layer: Any = self
        parameters: list[Node] = layer.trainable_weights
        key = step_key(targets, weighted, parameters)
        step = self._step(
            ("train", key),
            executor,
            lambda builder, who: builder.train_step(compiled, key, parameters, layer.weight_constraints(), who),
        )
        step.executable.step = int(compiled.optimizer.iterations.value)
        return step

    def _test_step(self, targets: Sequence[Array], weighted: bool, executor: str | Executor) -> Step:
        compiled = self._require_compiled()
        key = step_key(targets, weighted, ())
        return self._step(("test", key), executor, lambda builder, who: builder.test_step(compiled, key, who))

    def _source(
        self,
        x: Any,
        y: Any,
        sample_weight: Any,
        batch_size: int | None,
        class_weight: Mapping[int, float] | None,
        *,
        is_prediction: bool = False,
    ) -> _Source:
        """The data, checked against the model, which is built from it if need be."""
        if x is None:
            raise FeedError("expected data; found None as x")
        if batch_size is not None and (isinstance(batch_size, bool) or batch_size != int(batch_size) or batch_size < 1):
            raise ArgumentError(f"expected a positive batch_size; found {batch_size!r}")
        if is_batches(x):
            if y is not None or sample_weight is not None:
                raise ArgumentError("expected batches that hold y and sample_weight; found them as arguments as well")
            return _Batches(self, x, is_prediction)
        dataset = self._dataset(x, y, sample_weight, class_weight, is_prediction=is_prediction)
        return _InMemory(dataset, int(batch_size or 32))

    def _dataset(
        self, x: Any, y: Any, sample_weight: Any, class_weight: Any, *, is_prediction: bool
    ) -> Dataset:
        layer: Any = self
        if self._inputs is None:
            found = as_arrays(x, ["input"], "input")[0] if not isinstance(x, list | tuple) else None
            parts = [found] if found is not None else [np.asarray(part) for part in x]
            layer._build_from([Input(part.shape[1:], dtype=_input_dtype(part)) for part in parts])
        names = [node.name for node in layer.inputs]
        dataset = as_dataset(x, y, sample_weight, names, layer.output_names)
        if not is_prediction and class_weight is not None:
            weights = weights_by_class(class_weight, dataset.targets, dataset.weights)
            dataset = Dataset(dataset.inputs, dataset.targets, weights)
        check_batch(layer.inputs, dataset.inputs)
        if not is_prediction:
            if y is None and self._require_compiled().loss is not None:
                raise FeedError(f"expected targets for model {self.name!r}, which has a loss; found None as y")
            dataset = Dataset(dataset.inputs, self._checked_targets(dataset.targets), dataset.weights)
        return dataset

    def _checked_targets(self, targets: list[Array]) -> list[Array]:
        layer: Any = self
        if not targets:
            return targets
        losses = self._require_compiled().losses_for(layer.output_names)
        return [
            check_labels_of(loss, target, output, name)
            for loss, target, output, name in zip(losses, targets, layer.outputs, layer.output_names, strict=True)
        ]

    def _validation(
        self, source: _Source, validation_data: Any, validation_split: float, batch_size: int | None
    ) -> _Source | None:
        if validation_data is not None:
            x, y, weight = unpack_batch(validation_data) if isinstance(validation_data, tuple) else (validation_data, None, None)
            return self._source(x, y, weight, batch_size, None)
        if not validation_split:
            return None
        if not isinstance(source, _InMemory):
            raise ArgumentError("expected arrays with validation_split; found an iterable of batches. Give validation_data")
        return _InMemory(split_validation(source.dataset, validation_split)[1], int(batch_size or 32))


class _Source:
    """Where batches come from."""

    targets: Sequence[Array]
    weighted: bool
    batch_size: int | None = None
    samples: int | None = None
    steps: int | None = None

    def batches(self, order: Array | None) -> Iterator[tuple[Batch, int]]:
        raise NotImplementedError

    def whole(self) -> Iterator[tuple[Batch, int]]:
        return self.batches(None)


class _InMemory(_Source):
    """Arrays, cut into batches of one size, the last perhaps smaller."""

    def __init__(self, dataset: Dataset, batch_size: int) -> None:
        self.dataset = dataset
        self.targets = dataset.targets
        self.weighted = dataset.weights is not None
        self.batch_size = batch_size
        self.samples = dataset.size
        self.steps = -(-dataset.size // batch_size)

    def without_validation(self, fraction: float) -> _InMemory:
        assert self.batch_size is not None
        return _InMemory(split_validation(self.dataset, fraction)[0], self.batch_size)

    def batches(self, order: Array | None) -> Iterator[tuple[Batch, int]]:
        assert self.batch_size is not None
        return self.dataset.batches(self.batch_size, order)

    def whole(self) -> Iterator[tuple[Batch, int]]:
        return self.dataset.batches(self.dataset.size)


class _Batches(_Source):
    """An iterable of batches, of any sizes."""

    def __init__(self, model: Training, batches: Iterable[Any], is_prediction: bool) -> None:
        self._model = model
        self._batches = batches
        self._is_prediction = is_prediction
        iterator = iter(batches)
        first = next(iterator, None)
        if first is None:
            raise FeedError("expected at least one batch; found none")
        # A generator's first batch must not be lost by having been looked at.
        self._waiting: Iterator[Any] | None = itertools.chain([first], iterator)
        dataset = self._as_dataset(first)
        self.targets = dataset.targets
        self.weighted = dataset.weights is not None
        if hasattr(batches, "__len__"):
            self.steps = len(batches)

    def _as_dataset(self, batch: Any) -> Dataset:
        x, y, weight = unpack_batch(batch)
        return self._model._dataset(x, y, weight, None, is_prediction=self._is_prediction)

    def batches(self, order: Array | None) -> Iterator[tuple[Batch, int]]:
        waiting, self._waiting = self._waiting, None
        for batch in self._batches if waiting is None else waiting:
            dataset = self._as_dataset(batch)
            yield dataset.arrays, dataset.size


def _order(stream: int | None, epoch: int, samples: int | None) -> Array | None:
    """The order of the samples in an epoch; None: as they are."""
    if stream is None or samples is None:
        return None
    return generator(current_seed(), (stream << 20) + epoch).permutation(samples)


def _validates(epoch: int, frequency: int | Sequence[int]) -> bool:
    return (epoch + 1) % frequency == 0 if isinstance(frequency, int) else (epoch + 1) in frequency


def _input_dtype(array: Array) -> str:
    return "float32" if array.dtype.kind == "f" else array.dtype.name

"""compile, evaluate and predict: what a model does besides training, and what training shares with it."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from miai_graph.callbacks import Callback, CallbackList, Logs
from miai_graph.context import current_seed, next_stream
from miai_graph.errors import ArgumentError, FeedError, ModelError
from miai_graph.executor import Executor, as_executor
from miai_graph.layers.layer import Layer
from miai_graph.messages import locates_errors
from miai_graph.model.arguments import check_counts, fewer
from miai_graph.model.compiled import Compiled, check_compiled
from miai_graph.model.data import Dataset, is_batches, unpack_batch
from miai_graph.model.intake import Intake, input_names, inputs_like
from miai_graph.model.loop import RunningTotals, run_batches, run_epoch
from miai_graph.model.rebuild import flat_nodes, packed
from miai_graph.model.recomputation import Recomputed
from miai_graph.model.sources import ArraySource, IterableSource, Source
from miai_graph.model.step_cache import StepCache
from miai_graph.model.steps import Step, StepBuilder
from miai_graph.node import Node
from miai_graph.op import Array
from miai_graph.progress import ProgressBar, resolve_verbose


class Evaluation(Layer):
    """The part of `Model` that tests and predicts.

    Attributes
    ----------
    stop_evaluating, stop_predicting : set one to True in a callback, and evaluation or prediction ends after the batch
    """

    stop_evaluating: bool = False
    stop_predicting: bool = False
    _compiled: Compiled | None = None
    _steps: StepCache | None = None
    _input_structure: Any = None
    _output_structure: Any = None

    @property
    def output_names(self) -> list[str]:
        """One for each output, by which losses, metrics and targets in dictionaries are matched."""
        raise NotImplementedError

    def _build_from(self, inputs: Any) -> None:
        """Build a model that was not given as inputs and outputs, by calling it."""
        raise NotImplementedError

    def _build_outputs(self, inputs: Any, *, training: bool) -> Any:
        """The outputs on input nodes, without the call being remembered as one of a layer."""
        raise NotImplementedError

    def compile(
        self,
        optimizer: Any = "rmsprop",
        loss: Any = None,
        loss_weights: Any = None,
        metrics: Any = None,
        weighted_metrics: Any = None,
        run_eagerly: bool = False,
        steps_per_execution: int = 1,
        jit_compile: str | bool = "auto",
        auto_scale_loss: bool = True,
        *,
        executor: str | Executor = "serial",
        recompute: Any = None,
    ) -> None:
        """Say how the model is trained. Keras's arguments, and the executor.

        Shuffling and dropout draw their numbers from the seed of `set_seed` and the number of training steps done; both
        are saved with the model.

        Parameters
        ----------
        optimizer, loss : names or objects; loss may be a list, or a dictionary by output name
        loss_weights : a number for each output's loss
        metrics, weighted_metrics : names or objects, in a list; by output for several. The latter take sample weights.
        run_eagerly, steps_per_execution, jit_compile, auto_scale_loss : change nothing; scripts for Keras may have them
        executor : the name of one, or one: who runs the steps
        recompute : which values are computed again in the backward pass instead of being kept for it, so that a step
            takes less memory and more time. None: none. "all": those inside runs of about √n of the n layers, but not
            those of the last run, with which the backward pass begins. Names of layers, or of layers in them such as
            "encoder/dense", or patterns with ``*``: those inside each of them; in a list within the list, those inside
            several together. A number of bytes, or "64 MB": so few that the values of a step take no more, if one
            process has the whole batch. Names and limits are checked when training begins.

        Raises
        ------
        ArgumentError, ExecutorError
            for names that are not known; the model stays as it was.
        """
        seed, stream = current_seed(), next_stream()
        made = Compiled(optimizer, loss, loss_weights, metrics, weighted_metrics, executor, seed, stream, recompute)
        self._compiled = check_compiled(made, None if self._input_structure is None else self.output_names)
        self._steps = None

    @property
    def compiled(self) -> bool:
        return self._compiled is not None

    @property
    def compiled_arguments(self) -> Compiled:
        """What compile was told."""
        if self._compiled is None:
            raise ModelError(
                f"expected model {self.name!r} to be compiled; found that it is not. "
                "Call model.compile(optimizer, loss)"
            )
        return self._compiled

    @property
    def optimizer(self) -> Any:
        """The optimizer, once the model is compiled."""
        return self.compiled_arguments.optimizer

    @locates_errors
    def test_on_batch(self, x: Any, y: Any = None, sample_weight: Any = None, return_dict: bool = False) -> Any:
        """The loss and metrics of one batch, as `train_on_batch` returns them; nothing is trained."""
        compiled = self.compiled_arguments
        data = self._intake(x).dataset(x, y, sample_weight)
        step = self._step_cache.test(compiled, data.targets, data.weights, self._executor(None))
        return figures_of_batch(step, data.arrays, data.size, return_dict)

    @locates_errors
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
        compiled, who = self.compiled_arguments, self._executor(executor)
        check_counts(batch_size=batch_size, steps=steps)
        source = self._source(x, y, sample_weight, batch_size)
        step = self._step_cache.test(compiled, source.targets, source.weights, who)
        with self._listening(callbacks, verbose, source, {"steps": fewer(steps, source.steps)}) as listeners:
            return as_result(self._test(step, source, steps, listeners), return_dict)

    def _test(self, step: Step, source: Source, steps: int | None, listeners: CallbackList) -> Logs:
        listeners.call("on_test_begin", {})
        self.stop_evaluating = False
        batches = itertools.islice(source.batches(), steps)
        logs, _ = run_epoch(step, batches, listeners, "test", lambda: self.stop_evaluating)
        listeners.call("on_test_end", logs)
        return logs

    @locates_errors
    def predict(
        self,
        x: Any,
        batch_size: int | None = None,
        verbose: str | int = "auto",
        steps: int | None = None,
        callbacks: Iterable[Callback] | None = None,
        *,
        executor: str | Executor | None = None,
    ) -> Any:
        """The outputs for data: one array, or a list or dictionary of them, as the model's outputs are.

        Parameters
        ----------
        x : arrays, or an iterable of batches, of which only the inputs count
        batch_size : 32 by default
        verbose, steps, callbacks, executor : as for `evaluate`
        """
        who = self._executor(executor)
        check_counts(batch_size=batch_size, steps=steps)
        source = self._source(x, None, None, batch_size, with_targets=False)
        step = self._step_cache.predict(who)
        results: list[list[Array]] = []
        self.stop_predicting = False
        with self._listening(callbacks, verbose, source, {"steps": fewer(steps, source.steps)}) as listeners:
            listeners.call("on_predict_begin", {})
            batches = itertools.islice(source.batches(), steps)
            for number, (outputs, _) in enumerate(run_batches(step.executable.run, batches, listeners, "predict")):
                results.append(outputs)
                listeners.call("on_predict_batch_end", number, {"outputs": packed(self._output_structure, outputs)})
                if self.stop_predicting:
                    break
            listeners.call("on_predict_end", {})
        if not results:
            raise FeedError(
                "expected at least one batch to predict; found none. An iterator can be gone through only once"
            )
        joined = [np.concatenate([np.atleast_1d(part) for part in parts]) for parts in zip(*results, strict=True)]
        return packed(self._output_structure, joined)

    @locates_errors
    def predict_on_batch(self, x: Any) -> Any:
        """The outputs for one batch."""
        data = self._intake(x, with_targets=False).dataset(x)
        return packed(self._output_structure, self._step_cache.predict(self._executor(None)).executable(*data.arrays))

    def warmup(self, batch_size: int = 32, *, executor: str | Executor | None = None) -> None:
        """Start the executor and prepare all steps for batches of a size, so that the first is as fast as the others.

        Targets are taken to be as they mostly are for the losses: class numbers, or of the outputs' shapes.
        """
        check_counts(batch_size=batch_size)
        who, cache = self._executor(executor), self._step_cache
        cache.predict(who)
        if self._compiled is not None and self._compiled.loss is not None:
            cache.usual(self._compiled, who, batch_size)
        for step in cache.of(who):
            step.executable.warmup(batch_size)

    def _recomputed(self) -> list[str]:
        """What is computed again in training, and what that costs and saves, as text."""
        if self._compiled is None or self._compiled.recompute is None:
            return []
        steps = () if self._steps is None else self._steps.trained()
        found = dict.fromkeys(str(Recomputed.of(step.graph)) for step in steps)
        return list(found) or [f"recompute={self._compiled.recompute!r}; what it costs is told once training has begun"]

    # What these have in common

    def _executor(self, given: str | Executor | None) -> Executor:
        """The executor given, else compile's, else the default one."""
        if given is None:
            given = "serial" if self._compiled is None else self._compiled.executor
        return as_executor(given)

    @property
    def _step_cache(self) -> StepCache:
        if self._steps is None:
            outputs: list[Node] = flat_nodes(self._output_structure)
            inputs = self._input_structure

            def build(*, training: bool) -> list[Node]:
                return flat_nodes(self._build_outputs(inputs, training=training))

            builder = StepBuilder(flat_nodes(inputs), self.output_names, build, self.regularization_losses)
            self._steps = StepCache(self, builder, outputs)
        return self._steps

    def _intake(self, x: Any, *, with_targets: bool = True) -> Intake:
        """The entrance for data; the model is built from them if it does not know its inputs yet."""
        if x is None:
            raise FeedError("expected data; found None as x")
        if self._input_structure is None:
            self._build_from(inputs_like(x))
        return Intake(
            flat_nodes(self._input_structure),
            input_names(self._input_structure),
            flat_nodes(self._output_structure),
            self.output_names,
            self._compiled if with_targets else None,
        )

    def _source(
        self, x: Any, y: Any, sample_weight: Any, batch_size: int | None, *, with_targets: bool = True
    ) -> Source:
        """Batches, from arrays or from an iterable of batches.

        Raises
        ------
        ArgumentError, FeedError
            if they do not fit the model.
        """
        if not is_batches(x):
            intake = self._intake(x, with_targets=with_targets)
            dataset = intake.dataset(x, y, sample_weight)
            return ArraySource(dataset, intake.batch_size(batch_size, dataset.size))
        if y is not None or sample_weight is not None or batch_size is not None:
            raise ArgumentError(
                "expected batches that hold y and sample_weight and have their sizes; found y, sample_weight or "
                "batch_size as arguments as well"
            )

        def as_dataset(batch: Any) -> Dataset:
            inputs, targets, weights = unpack_batch(batch)
            intake = self._intake(inputs, with_targets=with_targets)
            return intake.dataset(inputs, targets, weights) if with_targets else intake.dataset(inputs)

        return IterableSource(x, as_dataset)

    @contextmanager
    def _listening(
        self,
        callbacks: Iterable[Callback] | Callback | None,
        verbose: str | int,
        source: Source,
        params: dict[str, Any],
        *others: Callback,
    ) -> Iterator[CallbackList]:
        """Within the block, callbacks can be told of what happens; they, and the progress bar, are closed after it."""
        given = [callbacks] if isinstance(callbacks, Callback) else list(callbacks or [])
        verbosity = resolve_verbose(verbose)
        bar = ProgressBar(verbosity, source.batch_size, source.samples)
        bars = [bar] if verbosity else []
        listeners = CallbackList([*given, *bars, *others], self, {"verbose": verbosity, **params})
        try:
            yield listeners
        finally:
            listeners.close()


def figures_of_batch(step: Step, arrays: Sequence[Array], size: int, return_dict: bool) -> Any:
    """Run a step on one batch, and return its figures."""
    totals = RunningTotals(step)
    totals.add(step.executable(*arrays), size)
    return as_result(totals.logs(), return_dict)


def as_result(logs: Logs, return_dict: bool) -> Any:
    """Figures as Keras returns them: one, a list, or by name."""
    values = list(logs.values())
    return logs if return_dict else values[0] if len(values) == 1 else values

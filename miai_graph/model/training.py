"""fit and train_on_batch: Keras's loop over epochs and batches, around a training step that is one graph."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter_ns
from typing import Any

from miai_graph.callbacks import Callback, CallbackList, History, Logs
from miai_graph.context import warn_user
from miai_graph.errors import ArgumentError
from miai_graph.executor import Executor
from miai_graph.messages import locates_errors
from miai_graph.model.arguments import check_counts, check_epochs, check_repeatable, check_trace_steps
from miai_graph.model.data import unpack_batch
from miai_graph.model.evaluation import Evaluation, figures_of_batch
from miai_graph.model.loop import run_epoch
from miai_graph.model.sources import ArraySource, Epochs, Source
from miai_graph.model.steps import Step
from miai_graph.op import Array
from miai_graph.ops.random import generator
from miai_graph.timing.booking import TrainingClock


class Training(Evaluation):
    """The part of `Model` that trains.

    Attributes
    ----------
    stop_training : set it to True in a callback, and training ends after the batch or epoch
    history : what the last `fit` returned
    """

    stop_training: bool = False
    history: History | None = None

    @locates_errors
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
        trace_steps: Collection[int] | None = None,
    ) -> History:
        """Train on data for a number of epochs. Keras's arguments, the executor, and what is traced.

        Parameters
        ----------
        x, y : arrays with a sample a row, or lists or dictionaries (by input and output name) of them; or x an iterable
            of batches (x, y) or (x, y, sample_weight)
        batch_size : 32 by default; not for an iterable of batches
        epochs : the number of the last epoch, counted from 1
        verbose : "auto" (a bar on a terminal, else nothing), 0 (nothing), 1 (a bar) or 2 (a line an epoch)
        callbacks : told of each epoch and batch
        validation_split : the share of the samples, from the end, to validate on
        validation_data : (x, y) or (x, y, sample_weight), or an iterable of batches, to validate on
        shuffle : whether the order of the samples is drawn anew in each epoch (see `compile`)
        class_weight : how much samples count, by class
        sample_weight : how much each sample counts
        initial_epoch : the number of epochs that are done already
        steps_per_epoch : the number of batches in an epoch; the next one goes on where it stopped
        validation_steps : stop validation after so many batches
        validation_batch_size : `batch_size` by default
        validation_freq : validate every so many epochs, or after the epochs listed
        executor : overrides compile's
        trace_steps : the numbers of steps, from 0 where this fit begins, of which the timing has a trace, beside the
            first and the last: ``range(5, 8)``

        Returns
        -------
        a `History`: losses and metrics by epoch, and where the time went

        Raises
        ------
        FeedError
            if arrays do not fit, before anything is changed.
        ExecutionError
            if a node fails. The weights are those of the last step that was finished.
        """
        begun_ns = perf_counter_ns()
        compiled, who = self.compiled_arguments, self._executor(executor)
        traced = check_trace_steps(trace_steps)
        check_counts(
            batch_size=batch_size,
            validation_batch_size=validation_batch_size,
            steps_per_epoch=steps_per_epoch,
            validation_steps=validation_steps,
            validation_freq=validation_freq if isinstance(validation_freq, int) else None,
        )
        check_epochs(epochs, initial_epoch)
        source = self._source(x, y, sample_weight, batch_size)
        chosen = validation_batch_size or batch_size
        rest: Source | None
        if validation_data is not None:
            rest = self._validation_source(validation_data, chosen)
        else:
            source, rest = _split(source, validation_split, chosen)
        if class_weight is not None:
            source = source.weighted_by_class(class_weight)
        check_repeatable(source, steps_per_epoch, epochs - initial_epoch, "steps_per_epoch")
        step = self._step_cache.train(compiled, source.targets, source.weights, who, source.batch_size)
        validation = None
        if rest is not None:
            tested = self._step_cache.test(compiled, rest.targets, rest.weights, who)
            validation = _Validation(rest, tested, validation_steps, validation_freq)
            validation.check_repeatable(range(initial_epoch, epochs))
        plan = Epochs(source, steps_per_epoch, self._shuffled if shuffle else None)
        params = {"epochs": epochs, "steps": plan.length, "metrics": _figures(step, validation)}
        history = self.history = History()
        with self._listening(callbacks, verbose, source, params, history) as listeners:
            clock = TrainingClock(begun_ns, listeners.time)
            executable = step.executable
            executable.reset_timing(traced)
            clock.start()
            history.follow(lambda: clock.complete(lambda: executable.timing, executable.caller))
            try:
                self._run_epochs(range(initial_epoch, epochs), step, plan, validation, listeners, clock)
            finally:
                clock.stop()
                history.settle()
        return history

    def _run_epochs(
        self,
        epochs: range,
        step: Step,
        plan: Epochs,
        validation: _Validation | None,
        listeners: CallbackList,
        clock: TrainingClock,
    ) -> None:
        self.stop_training = False
        logs: Logs = {}
        listeners.call("on_train_begin", {})
        for epoch in epochs:
            listeners.call("on_epoch_begin", epoch, {})
            logs, complete = self._train_epoch(step, plan, listeners, clock)
            if validation is not None and validation.is_due(epoch):
                with clock.validating():
                    found = self._test(validation.step, validation.source, validation.steps, listeners)
                logs |= {f"val_{name}": value for name, value in found.items()}
            listeners.call("on_epoch_end", epoch, logs)
            if self.stop_training or not self._goes_on(plan, complete, is_last=epoch + 1 == epochs.stop):
                break
        self.optimizer.finalize_variable_values(step.parameters)
        listeners.call("on_train_end", logs)

    def _train_epoch(
        self, step: Step, plan: Epochs, listeners: CallbackList, clock: TrainingClock
    ) -> tuple[Logs, bool]:
        """The figures, and whether there were as many batches as there should be."""
        first = self._iterations
        step.executable.step = first
        batches, run = clock.drawing(plan.batches(first), plan.source.drawn_at_once), None
        if step.executable.caller:
            # What this process does in steps is not booked by a worker.
            run = clock.running(step.executable.run)
        logs, count = run_epoch(step, batches, listeners, "train", self._is_stopped, run)
        return logs, plan.length is None or count == plan.length

    def _goes_on(self, plan: Epochs, complete: bool, *, is_last: bool) -> bool:
        """Whether there is data for another epoch; a warning if there should be."""
        if complete and (is_last or plan.has_more(self._iterations)):
            return True
        warn_user("expected more batches; found that the data ran out. Training ends here")
        return False

    @property
    def _iterations(self) -> int:
        return int(self.optimizer.iterations.value)

    def _is_stopped(self) -> bool:
        return self.stop_training

    def _shuffled(self, samples: int, step: int) -> Array:
        """The order of the samples for a pass that begins at a training step."""
        compiled = self.compiled_arguments
        return generator(compiled.seed, (compiled.stream << 32) + step).permutation(samples)

    def _validation_source(self, data: Any, batch_size: int | None) -> Source:
        if isinstance(data, tuple | list):
            x, y, sample_weight = unpack_batch(data)
            return self._source(x, y, sample_weight, batch_size)
        return self._source(data, None, None, None)

    @locates_errors
    def train_on_batch(
        self,
        x: Any,
        y: Any = None,
        sample_weight: Any = None,
        class_weight: Mapping[int, float] | None = None,
        return_dict: bool = False,
    ) -> Any:
        """One training step on one batch.

        Returns
        -------
        the loss, or a list of it and the metrics if there are any, or with `return_dict` a dictionary by name
        """
        compiled = self.compiled_arguments
        data = self._intake(x).dataset(x, y, sample_weight).weighted_by_class(class_weight)
        step = self._step_cache.train(compiled, data.targets, data.weights, self._executor(None), data.size)
        return figures_of_batch(step, data.arrays, data.size, return_dict)


@dataclass(frozen=True)
class _Validation:
    """What is tested on after some epochs, and with which step."""

    source: Source
    step: Step
    steps: int | None
    frequency: int | Sequence[int]

    def is_due(self, epoch: int) -> bool:
        """Whether it is time to validate after an epoch, counted from 0."""
        done = epoch + 1
        return done % self.frequency == 0 if isinstance(self.frequency, int) else done in self.frequency

    def check_repeatable(self, epochs: range) -> None:
        times = sum(self.is_due(epoch) for epoch in epochs)
        check_repeatable(self.source, self.steps, times, "validation_steps")


def _split(source: Source, fraction: float, batch_size: int | None) -> tuple[Source, Source | None]:
    """What is trained on, and what is validated on, if anything."""
    if fraction == 0:
        return source, None
    if not isinstance(source, ArraySource):
        raise ArgumentError("expected arrays with validation_split; found an iterable of batches. Give validation_data")
    return source.split(fraction, batch_size or source.batch_size)


def _figures(step: Step, validation: _Validation | None) -> list[str]:
    """The names of what will be reported."""
    return [*step.figures, *(f"val_{name}" for name in (validation.step.figures if validation is not None else ()))]

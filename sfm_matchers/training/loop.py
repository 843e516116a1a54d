"""One training loop for every network: resumable at any step, on any device."""

from __future__ import annotations

import copy
import csv
import logging
import math
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sized
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType, MappingProxyType
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from sfm_matchers.errors import InputError
from sfm_matchers.files.replacing import replacing
from sfm_matchers.networks import onednn
from sfm_matchers.networks.precision import has_fast_bfloat16
from sfm_matchers.training.curves import draw_curves
from sfm_matchers.training.data.photographs import Photographs
from sfm_matchers.training.optimizers import MatrixAndScalarOptimizer
from sfm_matchers.training.options import TrainingOptions
from sfm_matchers.weights.loading import check_finite, load_state_dict_file
from sfm_matchers.weights.registry import WeightsMetadata
from sfm_matchers.weights.safetensors_file import read_as_float32, save_half_precision

logger = logging.getLogger(__name__)

CHECKPOINT_NAME = "checkpoint.pt"
WEIGHTS_NAME = "weights.safetensors"
METRICS_NAME = "metrics.csv"
VALIDATION_NAME = "validation.csv"
CURVES_NAME = "metrics.png"

WeightsMeasure = Callable[[Path], dict[str, float]]


class OneRate:
    """A training task in which everything learns at the same pace, and has nothing to set."""

    settings: Mapping[str, str] = MappingProxyType({})

    def learning_rates(self, network: nn.Module) -> Mapping[str, Tensor | float]:
        """See `TrainingTask.learning_rates`."""
        return {}


@dataclass(frozen=True)
class TrainedNetwork:
    """What exported weights say they are for."""

    name: str  # as `sfm_matchers.weights` has it
    features: str | None = None  # the front-end it is trained for; None if it takes images
    config: dict[str, float] = field(default_factory=dict)  # what the weights need, or work best in


Trained = TypeVar("Trained", bound=nn.Module)
Batch = TypeVar("Batch", bound=Sized)


class TrainingTask(Protocol[Trained, Batch]):
    """What the loop needs to know of one network, and of the batches that it learns from."""

    trains: TrainedNetwork
    settings: Mapping[str, str]
    """What else decides the course of a run; a run goes on with the same only."""

    def build_network(self, photographs: Photographs, device: torch.device) -> Trained:
        """Make the network with its initial weights, which may depend on the photographs."""
        ...

    def sample_batch(
        self,
        photographs: Photographs,
        batch_size: float,
        progress: float,
        generator: torch.Generator,
        device: torch.device,
    ) -> Batch:
        """Make training pairs; `progress` runs from 0 to 1 and sets their difficulty."""
        ...

    def losses(
        self, network: Trained, batch: Batch, progress: float, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the scalar to minimise and scalars to record."""
        ...

    def learning_rates(self, network: Trained) -> Mapping[str, Tensor | float]:
        """Shares of the learning rate; see `MatrixAndScalarOptimizer`."""
        ...

    def validate(
        self, network: Trained, photographs: Photographs, device: torch.device
    ) -> dict[str, float]:
        """Measure the network, in eval mode, on pairs of held-out photographs (always the same)."""
        ...


AnyTask = TrainingTask[Any, Any]
"""Of the network and the batches that it says."""


def learning_rate(step: int, options: TrainingOptions) -> float:
    """Linear warm-up to the peak, then half a cosine down to zero at the last step."""
    warm_up = max(1, round(options.warm_up * options.steps))
    if step < warm_up:
        return options.learning_rate * (step + 1) / warm_up
    done = (step - warm_up) / max(1, options.steps - warm_up)
    return options.learning_rate * 0.5 * (1 + math.cos(math.pi * done))


@dataclass
class _Share:
    """What one worker contributes to a step."""

    gradients: tuple[Tensor | None, ...]
    metrics: dict[str, Tensor]
    pairs: int


@contextmanager
def _flushed_denormals() -> Iterator[None]:
    """Take numbers too small for normal floats for zero in this thread.

    GELU's tails make such gradients, which take a CPU a hundred times as long. Afterwards the
    arithmetic of the caller's own code is as it was.
    """
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


class Trainer:
    """The state of a run: network, its running average, optimizer, step, recorded metrics."""

    def __init__(
        self,
        task: AnyTask,
        options: TrainingOptions,
        photographs: Photographs,
        output: Path,
        device: torch.device,
    ) -> None:
        torch.manual_seed(options.seed)
        self.task = task
        self.options = options
        self.photographs = photographs
        self.output = output
        self.device = device
        self.network = task.build_network(photographs, device)
        self.average = copy.deepcopy(self.network).requires_grad_(False).eval()
        self.parameters = [p for p in self.network.parameters() if p.requires_grad]
        self.optimizer = MatrixAndScalarOptimizer(
            self.network,
            options.learning_rate,
            options.weight_decay,
            task.learning_rates(self.network),
        )
        # The setting is one of each thread; `_flushed_denormals` says why.
        self.workers = ThreadPoolExecutor(
            options.workers, initializer=torch.set_flush_denormal, initargs=(True,)
        )
        self.step = 0
        self.pairs = 0
        self.seconds = 0.0
        self.rows: list[dict[str, float]] = []
        self.validation_rows: list[dict[str, float]] = []

    @_flushed_denormals()
    def train_step(self) -> dict[str, Tensor]:
        """Make one batch and one update; returns scalars to record, still on the device."""
        options = self.options
        self.optimizer.set_learning_rate(learning_rate(self.step, options))
        self.network.train()
        shares = list(self.workers.map(self._gradients, range(options.workers)))
        for index, parameter in enumerate(self.parameters):
            present = [g for g in (share.gradients[index] for share in shares) if g is not None]
            parameter.grad = torch.stack(present).sum(0) / options.workers if present else None
        norm = nn.utils.clip_grad_norm_(self.parameters, options.clip_norm)
        if torch.isfinite(norm):
            self.optimizer.step()
        self.step += 1
        self.pairs += sum(share.pairs for share in shares)
        self._update_average()
        return {**_mean_metrics([share.metrics for share in shares]), "gradient_norm": norm}

    def _gradients(self, worker: int) -> _Share:
        """Make one worker's share of the batch and differentiate its loss."""
        options = self.options
        # Everything random in a step follows from its number: nothing else is needed to resume.
        seed = (options.seed * 1_000_003 + self.step) * options.workers + worker
        generator = torch.Generator().manual_seed(seed)
        progress = self.step / options.steps
        batch = self.task.sample_batch(
            self.photographs,
            options.batch_size / options.workers,
            progress,
            generator,
            self.device,
        )
        kind = self.device.type
        replaces_attention = kind == "cpu" and onednn.is_faster()
        attention = onednn.explicit_attention() if replaces_attention else nullcontext()
        half = torch.autocast(kind, torch.bfloat16, enabled=has_fast_bfloat16(self.device))
        with half, attention:
            loss, metrics = self.task.losses(self.network, batch, progress, generator)
        gradients = torch.autograd.grad(loss, self.parameters, allow_unused=True)
        return _Share(gradients, {"loss": loss.detach(), **metrics}, len(batch))

    @torch.no_grad()
    def _update_average(self) -> None:
        # The average looks back over a fiftieth of the run, and less at its beginning.
        decay = min(1 - 50 / max(self.options.steps, 100), self.step / (self.step + 10))
        current = self.network.state_dict()
        for name, value in self.average.state_dict().items():
            if value.is_floating_point():
                value.lerp_(current[name], 1 - decay)
            else:
                value.copy_(current[name])

    def validate(
        self, photographs: Photographs, measure: WeightsMeasure | None = None
    ) -> dict[str, float]:
        """Measure the averaged weights and record the result; `measure` gets them as a file."""
        metrics = self.task.validate(self.average, photographs, self.device)
        if measure is not None:
            self.save()
            metrics = metrics | measure(self.output / WEIGHTS_NAME)
        self.validation_rows.append({"step": self.step, "pairs": self.pairs, **metrics})
        return metrics

    def save(self) -> None:
        """Write checkpoint, exported weights, metrics and curves; each file is replaced whole."""
        state = {
            "options": asdict(self.options),
            "settings": dict(self.task.settings),
            "network": self.network.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "pairs": self.pairs,
            "seconds": self.seconds,
            "rows": self.rows,
            "validation_rows": self.validation_rows,
            "rng": _rng_state(),
        }
        with replacing(self.output / CHECKPOINT_NAME) as temporary:
            torch.save(state, temporary)
        save_half_precision(
            self.average.state_dict(),
            self.output / WEIGHTS_NAME,
            self._metadata().to_header(),
        )
        _write_csv(self.output / METRICS_NAME, self.rows)
        _write_csv(self.output / VALIDATION_NAME, self.validation_rows)
        draw_curves(self.rows, self.validation_rows, self.output / CURVES_NAME)

    def _metadata(self) -> WeightsMetadata:
        trains = self.task.trains
        last = self.validation_rows[-1] if self.validation_rows else {}
        return WeightsMetadata(
            trains.name,
            f"{len(self.photographs)} photographs, {self.pairs} pairs",
            self.step,
            {name: value for name, value in last.items() if name not in ("step", "pairs")},
            features=trains.features,
            licence="",  # who trains decides
            config=trains.config,
        )

    def load_initial_weights(self, path: Path) -> None:
        """Start from the averaged weights of another run: its checkpoint or its exported weights.

        Raises:
            InputError: there is no such file, or it is of another network.
            WeightsError: the file is damaged, or of other things, or not all of it is finite.
        """
        if not path.is_file():
            raise InputError(f"no file {path}: give a checkpoint.pt or weights.safetensors")
        if path.suffix == ".safetensors":
            average = read_as_float32(path)
        else:
            average = load_state_dict_file(path)
        check_finite(average, path)
        try:
            self.network.load_state_dict(average)
        except RuntimeError as error:
            raise InputError(f"{path} holds weights of another network") from error
        self.average.load_state_dict(average)

    def resume(self) -> bool:
        """Go on from the checkpoint in the output folder, if there is one.

        Raises:
            InputError: if the checkpoint was made with options that change the course of the run,
                or is damaged.
        """
        path = self.output / CHECKPOINT_NAME
        if not path.exists():
            return False
        try:
            state = torch.load(path, map_location=self.device, weights_only=True)
        except Exception as error:  # of garbage torch raises anything
            raise InputError(f"{path} is damaged: delete it to begin anew") from error
        for key in (
            "steps",
            "batch_size",
            "learning_rate",
            "warm_up",
            "weight_decay",
            "workers",
            "seed",
        ):
            if state["options"][key] != getattr(self.options, key):
                raise InputError(
                    f"{path} was made with {key}={state['options'][key]}, now "
                    f"{getattr(self.options, key)}: give the same value or another --output"
                )
        settings = dict(self.task.settings)
        if state.get("settings", {}) != settings:
            raise InputError(
                f"{path} was made with {state.get('settings')}, now {settings}: give the same "
                "options or another --output"
            )
        self.network.load_state_dict(state["network"])
        self.average.load_state_dict(state["average"])
        try:
            self.optimizer.load_state_dict(state["optimizer"])
        except ValueError as error:
            raise InputError(
                f"{path} is of a run of other parts of the network, or with another optimizer"
            ) from error
        self.step, self.pairs, self.seconds = state["step"], state["pairs"], state["seconds"]
        self.rows, self.validation_rows = state["rows"], state["validation_rows"]
        _restore_rng_state(state["rng"])
        return True

    def run(self, held_out: Photographs, measure: WeightsMeasure | None = None) -> None:
        """Train until the last step, the end of the time budget, or a signal to stop.

        Args:
            held_out: photographs for the validation.
            measure: a further measure of exported weights, such as the poses of real pairs.
        """
        options = self.options
        start = last_save = last_log = time.monotonic()
        seconds_before, first_step = self.seconds, self.step
        pending: list[dict[str, Any]] = []
        with _stop_signals() as stopped:
            while self.step < options.steps and not stopped:
                metrics = self.train_step()
                rate = learning_rate(self.step - 1, options)
                pending.append({"step": self.step, "learning_rate": rate, **metrics})
                now = time.monotonic()
                self.seconds = seconds_before + now - start
                if now - last_log > options.log_seconds or self.step == first_step + 1:
                    self._flush(pending, time.monotonic() - start, first_step)
                    last_log = now
                if self.step % options.validate_every == 0 or self.step == options.steps:
                    validation = self.validate(held_out, measure)
                    logger.info("validation at step %d: %s", self.step, _format(validation))
                if now - last_save > options.checkpoint_seconds:
                    self._flush(pending, time.monotonic() - start, first_step)
                    self.save()
                    last_save = time.monotonic()
                if options.time_budget is not None and now - start > options.time_budget:
                    logger.info("time budget of %.0f s used at step %d", now - start, self.step)
                    break
        self._flush(pending, time.monotonic() - start, first_step)
        self.save()

    def _flush(self, pending: list[dict[str, Any]], elapsed: float, first_step: int) -> None:
        """Bring recorded scalars from the device to the host, and say where the run stands."""
        if not pending:
            return
        for row in pending:
            self.rows.append({key: float(value) for key, value in row.items()})
        recent = self.rows[-len(pending) :]
        names = dict.fromkeys(key for row in recent for key in row)
        means = {
            name: float(np.mean([row[name] for row in recent if name in row]))
            for name in names
            if name not in ("step", "learning_rate")
        }
        pending.clear()
        rate = (self.step - first_step) / max(elapsed, 1e-9)
        logger.info(
            "step %d/%d  %s  lr %.1e  %.2f pairs/s  ETA %s",
            self.step,
            self.options.steps,
            _format(means),
            self.rows[-1]["learning_rate"],
            rate * self.pairs / max(1, self.step),
            _duration((self.options.steps - self.step) / max(rate, 1e-9)),
        )


def _mean_metrics(metrics: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Average each scalar over the workers that recorded it."""
    names = dict.fromkeys(name for one in metrics for name in one)
    return {
        name: torch.stack([one[name] for one in metrics if name in one]).mean() for name in names
    }


def _rng_state() -> dict[str, Any]:
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {
        "torch": torch.get_rng_state(),
        "cuda": cuda,
    }


def _restore_rng_state(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["torch"].cpu())
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all([s.cpu() for s in state["cuda"]])


@contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM in a list instead of dying of them."""
    received: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        logger.info("signal %d: stopping after this step", number)
        received.append(number)

    previous = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _write_csv(path: Path, rows: list[dict[str, float]]) -> None:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with replacing(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows({key: format(value, ".6g") for key, value in row.items()} for row in rows)


def _format(metrics: dict[str, float]) -> str:
    return "  ".join(f"{name} {value:.3g}" for name, value in metrics.items())


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes // 60}h{minutes % 60:02d}m"

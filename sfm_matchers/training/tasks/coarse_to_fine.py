"""What the tasks of the detector-free networks share: a coarse stage, and at times the fine one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from sfm_matchers.training.data.pair_batch import PairBatch
from sfm_matchers.training.data.photographs import Photographs
from sfm_matchers.training.loop import OneRate
from sfm_matchers.training.schedule import (
    UPRIGHT,
    mean_over_validation_sets,
    sample_scheduled_pairs,
)

Network = TypeVar("Network", bound=nn.Module)
Stage = TypeVar("Stage")
Losses = tuple[Tensor, dict[str, Tensor]]
"""The scalar to minimise and scalars to record."""


class CoarseToFineTask(OneRate, ABC, Generic[Network, Stage]):
    """A network that matches cells of upright photographs, and refines within pairs of cells.

    Attributes:
        fine_share: of the batches that the fine stage sees.
        fine_weight: of its loss.
    """

    fine_share = 1.0
    fine_weight = 1.0

    @abstractmethod
    def coarse_stage(self, network: Network, batch: PairBatch) -> Stage:
        """Run the coarse stage on a batch; return what it computed, with the truth beside it."""

    @abstractmethod
    def coarse_losses(self, network: Network, stage: Stage, progress: float) -> Losses:
        """The losses of the coarse stage."""

    @abstractmethod
    def fine_losses(
        self, network: Network, stage: Stage, batch: PairBatch, generator: torch.Generator
    ) -> Losses | None:
        """The losses of the fine stage; None if the batch has nothing to refine."""

    def sample_batch(
        self,
        photographs: Photographs,
        batch_size: float,
        progress: float,
        generator: torch.Generator,
        device: torch.device,
    ) -> PairBatch:
        """See `TrainingTask.sample_batch`."""
        return sample_scheduled_pairs(
            photographs, batch_size, progress, generator, device, max_turn=UPRIGHT
        )

    def losses(
        self, network: Network, batch: PairBatch, progress: float, generator: torch.Generator
    ) -> Losses:
        """See `TrainingTask.losses`."""
        stage = self.coarse_stage(network, batch)
        loss, metrics = self.coarse_losses(network, stage, progress)
        if float(torch.rand((), generator=generator)) >= self.fine_share:
            return loss, metrics
        fine = self.fine_losses(network, stage, batch, generator)
        if fine is None:
            return loss, metrics
        return loss + self.fine_weight * fine[0], metrics | fine[1]

    @torch.no_grad()
    def validate(
        self, network: Network, photographs: Photographs, device: torch.device
    ) -> dict[str, float]:
        """See `TrainingTask.validate`: shares of visible cells that find their exact partner."""

        def measure(batch: PairBatch, generator: torch.Generator) -> dict[str, Tensor]:
            stage = self.coarse_stage(network, batch)
            metrics = self.coarse_losses(network, stage, progress=0.0)[1]
            fine = self.fine_losses(network, stage, batch, generator)
            return metrics if fine is None else metrics | fine[1]

        return mean_over_validation_sets(photographs, device, UPRIGHT, measure)

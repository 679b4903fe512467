"""The training loop's parts: samples by number, the loss, and the network in Lightning's frame.

Sample ``i`` of epoch ``e`` is a function of (seed, e, i) alone: not of the process that draws it,
nor of what was drawn before. So a run that was killed and goes on from the end of an epoch sees
the same samples as one that was not, and two devices together see what one alone would.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from node.training.frame import LightningDataModule, LightningModule, Trainer
from node.training.measures import dice
from node.training.recipe import Case, Labels, Manifest, Recipe, Settings
from node.training.split import Split

IGNORED = 255
INFERENCE_BATCH = 8


class Samples(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """The samples of one epoch; every case is drawn as often as any other."""

    def __init__(
        self,
        recipe: Recipe,
        manifest: Manifest,
        cases: tuple[Case, ...],
        count: int,
        seed: tuple[int, int],
    ) -> None:
        """``seed`` is that of the run, and the epoch."""
        self._recipe, self._manifest, self._cases = recipe, manifest, cases
        self._count, self._seed = count, seed

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        rng = np.random.default_rng((*self._seed, index))
        case = self._cases[int(rng.integers(len(self._cases)))]
        image, labels = self._recipe.draw(case, self._manifest, rng)
        return torch.from_numpy(image), torch.from_numpy(labels.astype(np.int64))


class View(NamedTuple):
    """One held-out case as the network sees it, and what it should find."""

    name: str
    inputs: npt.NDArray[np.float32]
    """(slices, channels, rows, columns)."""
    labels: Labels
    """(slices, rows, columns)."""


class Views(Dataset[View]):
    """The held-out cases, made ready one at a time."""

    def __init__(self, recipe: Recipe, manifest: Manifest, cases: tuple[Case, ...]) -> None:
        self._recipe, self._manifest, self._cases = recipe, manifest, cases

    def __len__(self) -> int:
        return len(self._cases)

    def __getitem__(self, index: int) -> View:
        case = self._cases[index]
        return View(case.name, self._recipe.inputs(case, self._manifest), case.labels)


class CaseData(LightningDataModule):
    """Samples to learn from and cases to be judged by, in batches."""

    def __init__(
        self,
        recipe: Recipe,
        manifest: Manifest,
        split: Split,
        settings: Settings,
        seed: int,
        loaders: int = 0,
    ) -> None:
        """``loaders`` is the number of processes per device that prepare samples."""
        super().__init__()
        self._recipe, self._manifest, self._split = recipe, manifest, split
        self._settings, self._seed, self._loaders = settings, seed, loaders

    def train_dataloader(self) -> DataLoader[Any]:
        """The samples of the epoch that begins; asked for anew every epoch."""
        trainer = cast(Trainer, self.trainer)
        samples = Samples(
            self._recipe,
            self._manifest,
            self._split.training,
            self._settings.samples_per_epoch,
            (self._seed, trainer.current_epoch),
        )
        mine: DistributedSampler[Any] = DistributedSampler(
            samples, trainer.world_size, trainer.global_rank, shuffle=False
        )
        return DataLoader(
            samples,
            batch_size=max(1, self._settings.batch // trainer.world_size),
            sampler=mine,
            num_workers=self._loaders,
            pin_memory=trainer.strategy.root_device.type == "cuda",
            drop_last=True,
        )

    def val_dataloader(self) -> DataLoader[Any]:
        """Whole cases, one by one. Every device measures them all: few, and no sum to get wrong."""
        views = Views(self._recipe, self._manifest, self._split.validation)
        return DataLoader(views, batch_size=None, collate_fn=_as_it_is)


def _as_it_is(view: Any) -> Any:
    return view


class Learner(LightningModule):
    """A network, its loss, its optimizer, and the Dice of the held-out cases.

    It holds no data: the averaging of weights copies it.
    """

    def __init__(
        self,
        network: torch.nn.Module,
        label_names: Sequence[str],
        settings: Settings,
        seed: int,
    ) -> None:
        """``label_names`` are those of labels 1, 2, 3 ..."""
        super().__init__()
        self.network = network
        self.history: list[dict[str, float]] = []
        """One entry per epoch: loss, learning rate and, where validated, Dice by case and label."""
        self._label_names, self._settings, self._seed = tuple(label_names), settings, seed
        self._losses: list[torch.Tensor] = []
        self._measured: dict[str, float] = {}

    def on_train_epoch_start(self) -> None:
        """Whatever is random in the network itself starts each epoch from the same place."""
        torch.manual_seed(self._seed + self.current_epoch)
        self._losses, self._measured = [], {}

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], _: int) -> torch.Tensor:
        """Loss of one batch."""
        images, labels = batch
        images = images.contiguous(memory_format=torch.channels_last)
        loss = segmentation_loss(self.network(images), labels)
        self._losses.append(loss.detach())
        self.log("loss", loss, prog_bar=True)
        return loss

    def validation_step(self, view: View, _: int) -> None:
        """Dice of each label over one whole case, on the network's grid."""
        found = self.segment(view.inputs)
        for number, name in enumerate(self._label_names, start=1):
            self._measured[f"{view.name}/{name}"] = dice(found == number, view.labels == number)

    def on_validation_epoch_end(self) -> None:
        """The mean over cases and labels decides which epoch is kept."""
        counted = [value for value in self._measured.values() if not np.isnan(value)]
        self.log("validation_dice", float(np.mean(counted)), prog_bar=True)

    def on_train_epoch_end(self) -> None:
        """Write the epoch into the history, which goes into the checkpoint."""
        losses = torch.stack(self._losses).mean()
        if self.trainer.world_size > 1:
            losses = self.trainer.strategy.reduce(losses, reduce_op="mean")
        entry = {
            "epoch": float(self.current_epoch + 1),
            "loss": float(losses),
            "rate": float(self.trainer.optimizers[0].param_groups[0]["lr"]),
        }
        counted = [value for value in self._measured.values() if not np.isnan(value)]
        if counted:
            entry["validation_dice"] = float(np.mean(counted))
            entry.update({f"dice {name}": value for name, value in self._measured.items()})
        self.history.append(entry)

    def configure_optimizers(self) -> Any:
        """AdamW on a one-cycle schedule, a step per batch."""
        optimizer = torch.optim.AdamW(
            self.parameters(), lr=self._settings.rate, weight_decay=self._settings.weight_decay
        )
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer,
            self._settings.rate,
            total_steps=int(self.trainer.estimated_stepping_batches),
            pct_start=0.1,
        )
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """The curves survive a kill."""
        checkpoint["history"] = self.history

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on with the curves of the run that was killed."""
        self.history = list(checkpoint["history"])

    @torch.inference_mode()
    def segment(self, inputs: npt.NDArray[np.float32]) -> Labels:
        """Labels (slices, rows, columns) of a case's inputs, by the network as it is."""
        training = self.network.training
        self.network.eval()
        found = np.empty((len(inputs), *inputs.shape[2:]), np.uint8)
        for start in range(0, len(inputs), INFERENCE_BATCH):
            part = slice(start, start + INFERENCE_BATCH)
            scores = self.network(torch.from_numpy(inputs[part]).to(self.device))
            found[part] = scores.argmax(dim=1).cpu().numpy()
        self.network.train(training)
        return found


def segmentation_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy plus soft Dice over the batch, background left out of the Dice.

    ``logits`` (batch, classes, rows, columns), ``labels`` (batch, rows, columns) int64; voxels
    labelled 255 count in neither.
    """
    entropy = functional.cross_entropy(logits, labels, ignore_index=IGNORED)
    counted = (labels != IGNORED)[:, None]
    truth = functional.one_hot(labels.where(counted[:, 0], 0), logits.shape[1])
    truth = truth.permute(0, 3, 1, 2)[:, 1:] * counted
    probabilities = logits.softmax(dim=1)[:, 1:] * counted
    axes = (0, 2, 3)
    overlap = (probabilities * truth).sum(axes)
    # Ten voxels on either side: an absent label that is not found costs nothing.
    overlap_share = (2 * overlap + 10) / (probabilities.sum(axes) + truth.sum(axes) + 10)
    return entropy + (1 - overlap_share).mean()

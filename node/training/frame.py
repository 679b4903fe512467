"""Lightning, imported in one place, because torchvision must be mended before it.

Lightning imports torchmetrics, and that imports torchvision, which beside a CPU torch fails unless
it was imported as :func:`node.runtimes.network.import_torchvision` does.
"""

from node.runtimes.network import import_torchvision

import_torchvision()

from lightning import LightningDataModule, LightningModule, Trainer, seed_everything  # noqa: E402
from lightning.pytorch.callbacks import (  # noqa: E402
    Callback,
    ModelCheckpoint,
    RichProgressBar,
    WeightAveraging,
)

__all__ = [
    "Callback",
    "LightningDataModule",
    "LightningModule",
    "ModelCheckpoint",
    "RichProgressBar",
    "Trainer",
    "WeightAveraging",
    "seed_everything",
]

"""The network of ct_lungs: a small 2.5-D U-Net."""

from __future__ import annotations

import segmentation_models_pytorch as smp
import torch


def build_network(in_channels: int, classes: int) -> torch.nn.Module:
    """Untrained network; the node loads the weights.

    Input (batch, in_channels, 256, 256) float32 in [0, 1], axes towards the patient's back and
    left; output (batch, classes, 256, 256) logits, class 0 background.
    """
    # Most of a default U-Net's arithmetic is in its decoder: a slim one is the cheapest gain.
    return smp.Unet(
        "tu-mobilenetv3_small_100",
        encoder_weights=None,
        in_channels=in_channels,
        classes=classes,
        decoder_channels=(128, 64, 32, 16, 8),
    )

"""What attention size hangs on: how windows are laid, and probabilities that a byte rounds to zero.

One phantom, the demo models in PyTorch, Eq. 1-4 in NumPy on the models' grid: soft predictions as
float32 and as bytes, from windows laid over the whole volume, over the body, and half a window
aside.

    .venv/bin/python benchmarks/bench_attention_size.py [--seed S]
"""

from __future__ import annotations

import argparse

import numpy as np
from atlas_core.imaging.resampling import resample_image
from atlas_core.phantoms import make_phantom
from atlas_embedded.settings import EmbeddedSettings
from atlas_models.exporting import load_network
from atlas_models.serving import exported_models
from atlas_models.training.network_training import scale_hu
from bench.measurement import machine, report, say
from numpy.typing import NDArray
from peers.monai_side import AIR_HU, SIGMA_SHARE, attention_of

OVERLAP = 0.25

BODY_HU = -300.0
"""Windows over the body lie where anything is denser."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seed", type=int, default=1)
    phantom = make_phantom(parser.parse_args().seed)
    networks = [load_network(folder) for folder in exported_models(EmbeddedSettings().models_dir)]
    grid = phantom.geometry.canonical().resampled(networks[0][1].spacing_mm)
    hu = resample_image(phantom.ct, phantom.geometry, grid).transpose(2, 1, 0)
    dense = np.argwhere(hu > BODY_HU)
    low, high = dense.min(axis=0), dense.max(axis=0) + 1
    aside = np.array(networks[0][1].patch[::-1]) // 2
    found = {}
    for name, first, last, before in (
        ("whole volume", np.zeros(3, int), np.array(hu.shape), np.zeros(3, int)),
        ("body", low, high, np.zeros(3, int)),
        ("half a window aside", np.zeros(3, int), np.array(hu.shape), aside),
    ):
        part = hu[tuple(slice(a, b) for a, b in zip(first, last, strict=True))]
        soft = _soft(np.pad(part, [(n, 0) for n in before], constant_values=AIR_HU), networks)
        soft = soft[(slice(None), slice(None), *(slice(n, None) for n in before))]
        for width, values in (("float32", soft), ("bytes", np.rint(soft * 255) / np.float32(255))):
            attention = attention_of(np.asarray(values, np.float32))
            mean = values.mean(axis=0)
            found[f"{name}, {width}"] = {
                "attention_ml": round(float(attention.sum()) * grid.voxel_ml, 1),
                "where_mean_p_below_0.02": round(
                    float(attention[mean < 0.02].sum() / attention.sum()), 3
                ),
            }
            say(f"{name}, {width}: {found[f'{name}, {width}']}")
    report("attention-size", sizes=found, machine=machine())


def _soft(hu: NDArray[np.float32], networks: list) -> NDArray[np.float32]:  # type: ignore[type-arg]
    """Soft predictions ``[model, organ, z, y, x]``."""
    import torch
    from monai.inferers import sliding_window_inference

    window = torch.from_numpy(np.ascontiguousarray(hu))[None, None]
    with torch.inference_mode():
        return np.stack(
            [
                sliding_window_inference(
                    window,
                    config.patch[::-1],
                    1,
                    lambda part, net=network, own=config: torch.sigmoid(
                        net(scale_hu(part, own.hu_window))
                    ),
                    overlap=OVERLAP,
                    mode="gaussian",
                    sigma_scale=SIGMA_SHARE,
                    cval=AIR_HU,
                )[0].numpy()
                for network, config in networks
            ]
        )


if __name__ == "__main__":
    main()

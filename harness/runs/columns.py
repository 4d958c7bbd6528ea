"""The columns of the tables that `collect` writes and the analysis reads. Imports no torch.

Empty where not measured, never 0. Units stand in the descriptions; names are the field's own.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

#: Of the files in results/<study>; a larger one is refused. Raised when an older harness would misread them.
SCHEMA_VERSION = 1

#: results.csv: one row per cell, step and evaluation.
RESULT_COLUMNS: dict[str, str] = {
    "study": "name of the study",
    "cell": "id of the cell",
    "name": "readable name of the cell",
    "data": "name of the data set",
    "vae": "autoencoder whose latents are learned, name or trained@id; empty for pixels",
    "block": "conditioning block",
    "depth": "transformer blocks",
    "width": "hidden size",
    "heads": "attention heads",
    "patch_size": "side of a patch",
    "tokens": "length of the patch sequence",
    "params": "trainable parameters, count",
    "params_m": "trainable parameters, 1e6",
    "gmacs": "multiply-adds of one forward pass of one image, 1e9 (the paper's 'Gflops')",
    "seed": "training seed",
    "step": "training steps taken",
    "batch_size": "global batch",
    "recipe": "what else of the cell differs from the defaults, but for shape, block, seed, steps and batch",
    "train_gmacs": "3 * gmacs * batch_size * step, the paper's training compute, 1e9 multiply-adds",
    "loss_train": "denoising loss (noise MSE) of the EMA weights on the train split, mean over timesteps",
    "loss_heldout": "the same on the held-out split",
    "loss_optimal_train": "what the optimal denoiser of the training images, a pure memoriser, has as loss_train; "
    "empty for latents, for more than 100,000 images and for more than 2 GB of them",
    "loss_optimal_heldout": "the same as loss_heldout; most of it comes from the cleanest timesteps",
    "evaluation": "id of the evaluation",
    "protocol": "short hash of what values must share to compare: N, sampler, guidance, extractor, reference, ...",
    "samples": "generated images N",
    "sampler": "ddpm or ddim",
    "sampling_steps": "sampler steps",
    "guidance": "classifier-free guidance scale, 1 = none",
    "guidance_channels": "noise channels guided, all or first-three; empty without guidance",
    "labels": "classes of the samples: uniform, balanced or training (as frequent as there); empty without classes",
    "ema": "sampled with the averaged weights",
    "sampling_seed": "seed of the samples' noise and labels",
    "extractor": "feature space, name@hash of its weights",
    "reference": "real images compared with, data/split(count)@hash",
    "frechet": "Frechet distance in the extractor's feature space (FID only for the published Inception weights)",
    "frechet_mean_term": "of it the squared distance of the means",
    "frechet_cov_term": "of it the part of the covariances",
    "frechet_bias": "how much higher N samples of the same Gaussian score than infinitely many, to first order in 1/N",
    "frechet_infinity": "the distance extrapolated to infinitely many samples by a line in 1/N over nested prefixes",
    "frechet_infinity_se": "standard error of that line at 1/N = 0; prefixes share samples, so no confidence interval",
    "frechet_folds_mean": "mean of the distances of five disjoint folds of the samples",
    "frechet_folds_sd": "their standard deviation",
    "frechet_fold_samples": "N of a fold",
    "frechet_floor": "distance of N real images to all others of the reference, mean of 5 draws; empty if too few",
    "frechet_train": "distance to the train split, whatever the reference",
    "frechet_heldout": "distance to the held-out split",
    "nearest_ratio": "median over samples of the distance to the nearest training image (features) over the second's",
    "copies": "share of samples with a ratio below 1/3 (Yoon et al. 2023); empty for very large training sets",
    "sfid": "the distance of Inception's spatial features (sFID only for the published Inception weights)",
    "kid": "kernel distance, mean over subsets",
    "precision": "k = 3 precision",
    "recall": "k = 3 recall",
    "inception_score": "the score's formula on the extractor's own class probabilities",
    "reconstruction_frechet": "of latents: Frechet distance of decoded held-out images to their originals",
    "train_seconds": "wall time of training, all attempts",
    "sample_seconds": "wall time of sampling and scoring",
}

#: Values compare only where all of these are equal; the sampling seed is not among them.
PROTOCOL_COLUMNS = (
    "data",
    "vae",
    "samples",
    "extractor",
    "reference",
    "sampler",
    "sampling_steps",
    "guidance",
    "guidance_channels",
    "labels",
    "ema",
)

#: nested.csv: one row per row of results.csv and count of samples.
NESTED_COLUMNS: dict[str, str] = {
    "study": "name of the study",
    "cell": "id of the cell",
    "name": "readable name of the cell",
    "step": "training steps taken",
    "evaluation": "id of the evaluation",
    "samples": "the first so many of the generated images",
    "frechet": "their Frechet distance; values at different N do not compare",
}

#: curves.csv: one row per cell and logged step.
CURVE_COLUMNS: dict[str, str] = {
    "study": "name of the study",
    "cell": "id of the cell",
    "name": "readable name of the cell",
    "step": "training steps taken",
    "loss": "training loss (MSE + variational term), mean since the row before; empty on measuring rows",
    "loss_train": "as in results.csv, at this step; empty where not measured",
    "loss_heldout": "as in results.csv, at this step; empty where not measured",
}

#: attempts.csv: one row per attempt at a cell.
ATTEMPT_COLUMNS: dict[str, str] = {
    "study": "name of the study",
    "cell": "id of the cell",
    "name": "readable name of the cell",
    "attempt": "number of the attempt, from 1",
    "outcome": "running, done, failed, stopped (by a signal), cancelled, lost (ended without a word)",
    "started": "UTC, ISO 8601",
    "ended": "UTC, ISO 8601; empty while running or lost",
    "seconds": "ended - started",
    "host": "machine",
    "device": "processor or GPU",
    "threads": "CPU threads of a rank",
    "ranks": "processes that shared the work",
    "torch": "version",
    "commit": "git commit, + when the code was changed",
    "diff": "hash of the change, which is diffs/<hash>.diff; empty without one",
    "cause": "of a failed or lost one: out of memory, non-finite loss, node, time limit, disk, bad input, code, lost",
    "message": "why it failed or stopped",
}


def protocol_hash(row: Mapping[str, Any]) -> str:
    """First 6 hex digits of sha256 over the `PROTOCOL_COLUMNS` of a row of results.csv."""
    values = {column: row.get(column) for column in PROTOCOL_COLUMNS}
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:6]


#: The published weights of Inception: name and first 8 hex digits of the file's sha256.
PUBLISHED_INCEPTION = "inception-v3-compat@6726825d"


def metric_name(extractor: str) -> str:
    """What the Frechet distance in this feature space is called.

    "FID" only for the published Inception: in the literature's own table, where it carries no hash, and in a study
    that scored with those very weights. Any other `name@hash` is "FD-name": another feature space is another metric.
    """
    if extractor in ("inception-v3", PUBLISHED_INCEPTION):
        return "FID"
    name = extractor.split("@")[0]
    return f"FD-{name}" if name else "FD"


def metric_labels(extractor: str) -> dict[str, str]:
    """Column to printed name of every metric of generated images: the published names only for the published Inception.

    In the order of the paper's Figure 12, with the kernel distance.
    """
    own = extractor.split("@")[0]
    is_fid = metric_name(extractor) == "FID"
    return {
        "frechet": metric_name(extractor),
        "sfid": "sFID" if is_fid else f"sFD-{own}",
        "kid": "KID" if is_fid else f"KD-{own}",
        "inception_score": "IS" if is_fid else f"IS-{own}",
        "precision": "Precision",
        "recall": "Recall",
    }

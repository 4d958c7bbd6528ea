"""The columns of the tables that `collect` writes. Readers, checks and pages take what they know of a column from here.

A new column is one row here and one line that measures it: `collect` copies a metric from the record by its name. A
value that was not measured is empty, never 0. This module imports no torch.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

#: Of the files in results/<study>; a larger one is refused. Raised when an older harness would misread them.
SCHEMA_VERSION = 2


@dataclass(frozen=True)
class Column:
    """One column of a table."""

    name: str
    type: Literal["text", "integer", "number", "boolean"]
    unit: str  #: empty where a value has none
    may_be_zero: bool  #: False: a value is above 0; True: an integer is at least 0, a number any finite one
    meaning: str
    title: str = ""  #: its heading in the report's table of all rows; without one it is not shown there
    required: bool = False  #: never empty
    added: bool = False  #: the first tables do not have it; where it is absent, nothing was measured


def _table(*columns: Column) -> dict[str, Column]:
    return {column.name: column for column in columns}


# fmt: off
_STUDY = Column("study", "text", "", True, "name of the study", required=True)
_CELL = Column("cell", "text", "", True, "id of the cell", required=True)
_NAME = Column("name", "text", "", True, "readable name of the cell", "Model", required=True)
_STEP = Column("step", "integer", "steps", True, "training steps taken", "Steps", required=True)

#: results.csv: one row per cell, step and evaluation.
RESULT_COLUMNS = _table(
    _STUDY,
    _CELL,
    _NAME,
    Column("data", "text", "", True, "name of the data set"),
    Column("vae", "text", "", True,
           "autoencoder whose latents are learned, name or trained@id; empty for pixels", added=True),
    Column("block", "text", "", True,
           "conditioning block; the name of the network where it has no blocks", "Block", required=True),
    Column("objective", "text", "", True,
           "what the network learns, with its own fields that differ from their defaults; empty in older tables, which "
           "have ddpm-hybrid", added=True),
    Column("depth", "integer", "blocks", False, "transformer blocks; empty for a network without them"),
    Column("width", "integer", "channels", False, "hidden size"),
    Column("heads", "integer", "heads", False, "attention heads"),
    Column("patch_size", "integer", "pixels", False, "side of a patch, in latents: positions", "Patch"),
    Column("tokens", "integer", "patches", False, "length of the patch sequence", "Tokens"),
    Column("params", "integer", "parameters", False, "trainable parameters"),
    Column("params_m", "number", "1e6 parameters", True, "trainable parameters", "Params, M"),
    Column("gmacs", "number", "1e9 multiply-adds", False,
           "one forward pass of one image (the paper's 'Gflops')", "Gflops", required=True),
    Column("seed", "integer", "", True, "training seed", "Seed"),
    Column("seeds", "text", "", True,
           "seeds of initialisation, order or noise that are not `seed`; empty where there are none", added=True),
    _STEP,
    Column("batch_size", "integer", "images", False, "global batch"),
    Column("recipe", "text", "", True,
           "other fields of the cell that differ from their defaults: all but shape, block, seed, steps and batch",
           added=True),
    Column("learning_rate", "number", "", False, "highest learning rate of the training", "Rate", added=True),
    Column("horizon", "integer", "steps", False,
           "steps at whose end the learning rate has fallen to 0, and at which a training is done; "
           "empty where it does not fall, and every step is the end of a shorter training", added=True),
    Column("draws", "integer", "", False,
           "version of the random draws of the training, see harness.data.draws; empty in older tables, which have 1",
           added=True),
    Column("train_gmacs", "number", "1e9 multiply-adds", True,
           "3 * gmacs * batch_size * step, the paper's training compute", "Training Gflops"),
    Column("loss_train", "number", "MSE", True,
           "error of what the objective predicts (noise; velocity with flow), of the EMA weights on the train split, "
           "mean over time; losses of two objectives do not compare", "Loss, train"),
    Column("loss_heldout", "number", "MSE", True, "the same on the held-out split", "Loss, held-out"),
    Column("loss_optimal_train", "number", "MSE", True,
           "loss_train of the optimal denoiser of the training images, which is a pure memoriser; "
           "empty for latents, for more than 100,000 images and for more than 2 GB of them", added=True),
    Column("loss_optimal_heldout", "number", "MSE", True,
           "loss_heldout of the same denoiser; most of it comes from the cleanest times; empty with flow, where it has "
           "no bound", added=True),
    Column("evaluation", "text", "", True, "id of the evaluation"),
    Column("protocol", "text", "", True,
           "short hash of what values must share to compare: N, sampler, guidance, extractor, reference, ...",
           added=True),
    Column("samples", "integer", "images", False, "generated images N"),
    Column("sampler", "text", "", True, "ddpm, ddim or ddim-clip; euler, heun or sde with flow"),
    Column("sampling_steps", "integer", "steps", False, "sampler steps"),
    Column("sampling_passes", "integer", "passes", False,
           "forward passes of the network for one sample: steps times those of a step (heun: 2), twice with guidance",
           added=True),
    Column("guidance", "number", "", True, "classifier-free guidance scale, 1 = none"),
    Column("guidance_channels", "text", "", True,
           "noise channels guided, all or first-three; empty without guidance", added=True),
    Column("labels", "text", "", True,
           "classes of the samples: uniform, balanced or training (as frequent as there); empty without classes",
           added=True),
    Column("ema", "boolean", "", True, "sampled with the averaged weights"),
    Column("sampling_seed", "integer", "", True, "seed of the samples' noise and labels"),
    Column("extractor", "text", "", True, "feature space, name@hash of its weights"),
    Column("reference", "text", "", True, "real images compared with, data/split(count)@hash"),
    Column("frechet", "number", "", True,
           "Frechet distance in the extractor's feature space (FID only for the published Inception weights)", "FD"),
    Column("frechet_mean_term", "number", "", True, "the squared distance of the means, a part of frechet", added=True),
    Column("frechet_cov_term", "number", "", True, "the part of frechet that comes from the covariances", added=True),
    Column("frechet_bias", "number", "", True,
           "how much higher N samples of the same Gaussian score than infinitely many, to first order in 1/N",
           added=True),
    Column("frechet_infinity", "number", "", True,
           "the distance extrapolated to infinitely many samples by a line in 1/N over nested prefixes", added=True),
    Column("frechet_infinity_se", "number", "", True,
           "standard error of that line at 1/N = 0; prefixes share samples, so no confidence interval", added=True),
    Column("frechet_folds_mean", "number", "", True,
           "mean of the distances of five disjoint folds of the samples", added=True),
    Column("frechet_folds_sd", "number", "", True, "their standard deviation", added=True),
    Column("frechet_fold_samples", "integer", "images", False, "N of a fold", added=True),
    Column("frechet_floor", "number", "", True,
           "distance of N real images to all others of the reference, mean of 5 draws; empty if too few", added=True),
    Column("frechet_train", "number", "", True, "distance to the train split, whatever the reference", added=True),
    Column("frechet_heldout", "number", "", True, "distance to the held-out split", added=True),
    Column("nearest_ratio", "number", "", True,
           "distance to the nearest training image over that to the second nearest, in features; median over samples",
           added=True),
    Column("copies", "number", "share", True,
           "samples whose ratio is below 1/3 (Yoon et al. 2023); empty for very large training sets", added=True),
    Column("sfid", "number", "", True,
           "the distance of Inception's spatial features (sFID only for the published Inception weights)", "sFD",
           added=True),
    Column("kid", "number", "", True, "kernel distance, mean over subsets", "KD"),
    Column("precision", "number", "share", True, "k = 3 precision", "Precision"),
    Column("recall", "number", "share", True, "k = 3 recall", "Recall"),
    Column("inception_score", "number", "", True,
           "the score's formula on the extractor's own class probabilities", "IS"),
    Column("reconstruction_frechet", "number", "", True,
           "Frechet distance of decoded held-out images to their originals; for latents only", "Autoencoder alone",
           added=True),
    Column("train_seconds", "number", "s", True, "wall time of training, all attempts"),
    Column("images_per_s", "number", "images/s", False, "speed of the training, after its first logged step",
           added=True),
    Column("tflops", "number", "1e12 operations/s", False,
           "that speed in floating-point operations, 6 * gmacs an image", added=True),
    Column("mfu", "number", "share", False,
           "tflops over the rate of a large matrix product of the same precision, measured when the last attempt began",
           added=True),
    Column("sample_seconds", "number", "s", True, "wall time of sampling and scoring"),
)

#: nested.csv: one row per row of results.csv and count of samples.
NESTED_COLUMNS = _table(
    _STUDY,
    _CELL,
    _NAME,
    _STEP,
    Column("evaluation", "text", "", True, "id of the evaluation", required=True),
    Column("samples", "integer", "images", False, "number of generated images, counted from the first", required=True),
    Column("frechet", "number", "", True, "Frechet distance of these images; values at different N do not compare"),
)

#: curves.csv: one row per cell and logged step.
CURVE_COLUMNS = _table(
    _STUDY,
    _CELL,
    _NAME,
    _STEP,
    Column("loss", "number", "", True,
           "training loss (ddpm-hybrid: MSE + variational term), mean since the row before; empty on measuring rows"),
    Column("learning_rate", "number", "", False, "of this step; empty where it is the same at every step", added=True),
    Column("loss_train", "number", "MSE", True, "as in results.csv, at this step; empty where not measured"),
    Column("loss_heldout", "number", "MSE", True, "as in results.csv, at this step; empty where not measured"),
)

#: attempts.csv: one row per attempt at a cell.
ATTEMPT_COLUMNS = _table(
    _STUDY,
    _CELL,
    Column("name", "text", "", True, "readable name of the cell", "Cell", required=True),
    Column("attempt", "integer", "", False, "number of the attempt, from 1", "Attempt", required=True),
    Column("outcome", "text", "", True,
           "running, done, failed, stopped (by a signal), cancelled, lost (ended without a word)", "Outcome",
           required=True),
    Column("started", "text", "ISO 8601, UTC", True, "when its job began; empty before that", "Started, UTC"),
    Column("ended", "text", "ISO 8601, UTC", True, "when it ended; empty while running or lost"),
    Column("seconds", "number", "s", True, "ended - started", "Seconds"),
    Column("estimated_seconds", "number", "s", True,
           "wall time of training, sampling and scoring, as estimated when the attempt began", added=True),
    Column("estimated_least", "number", "s", True,
           "lower end of its interval; empty where one value alone was known", added=True),
    Column("estimated_most", "number", "s", True, "upper end", added=True),
    Column("estimate_source", "text", "", True,
           "what the estimate rests on: a probe, finished cells, or assumed speeds", added=True),
    Column("host", "text", "", True, "machine", "Host"),
    Column("device", "text", "", True, "GPU, or the instruction set of the processor"),
    Column("cpu", "text", "", True, "model of the processor", added=True),
    Column("threads", "integer", "threads", False, "CPU threads of a rank"),
    Column("ranks", "integer", "processes", False, "processes that shared the work", added=True),
    Column("torch", "text", "", True, "version"),
    Column("commit", "text", "", True, "git commit, + when the code was changed"),
    Column("diff", "text", "", True,
           "hash of the code's changes, which are in diffs/<hash>.diff; empty without changes", added=True),
    Column("cause", "text", "", True,
           "of a failed or lost attempt: out of memory, non-finite, node, time limit, disk, bad input, code, "
           "did not start, lost",
           "Cause", added=True),
    Column("message", "text", "", True, "why it failed or stopped", "Reason"),
)
# fmt: on

#: The tables of a study by their file.
TABLES: dict[str, dict[str, Column]] = {
    "results.csv": RESULT_COLUMNS,
    "nested.csv": NESTED_COLUMNS,
    "curves.csv": CURVE_COLUMNS,
    "attempts.csv": ATTEMPT_COLUMNS,
}

#: Values compare only where all of these are equal; the sampling seed is not among them.
PROTOCOL_COLUMNS = (
    "data", "vae", "samples", "extractor", "reference", "sampler", "sampling_steps", "guidance", "guidance_channels",
    "labels", "ema",
)  # fmt: skip

#: Two networks are of equal compute if their `gmacs` differ by at most this share.
MATCHED = 0.05

#: What the literature calls a metric in the feature space of the published Inception weights, and only there.
PUBLISHED_TITLES = {"frechet": "FID", "sfid": "sFID", "kid": "KID", "inception_score": "IS"}

#: The published weights of Inception: name and first 8 hex digits of the file's sha256.
PUBLISHED_INCEPTION = "inception-v3-compat@6726825d"


#: What tables of the literature have as the extractor; nobody can hash it.
LITERATURE = "inception-v3"


_SEED = re.compile(r"-(?:seed|initialisation|order|noise)\d+(?=-|$)")


def without_seeds(name: str) -> str:
    """The name of a cell without its seeds, where the name has them: what repeats share."""
    return _SEED.sub("", name)


def protocol_hash(row: Mapping[str, Any]) -> str:
    """First 6 hex digits of sha256 over the `PROTOCOL_COLUMNS` of a row of results.csv."""
    values = {column: row.get(column) for column in PROTOCOL_COLUMNS}
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:6]


def printed_title(column: str, extractor: str) -> str:
    """The heading of a column of results.csv. For a metric in an extractor's feature space it names the extractor.

    Args:
        column: name of the column; one that is not in results.csv has its own name, with a capital.
        extractor: label `name@hash`, as in the column `extractor`; empty where nothing was measured.

    Returns:
        "FID", "sFID", "KID" and "IS" for the published Inception weights only, "FD-name" and so on for any other:
        another feature space is another metric.
    """
    title = RESULT_COLUMNS[column].title if column in RESULT_COLUMNS else column.capitalize()
    if column not in PUBLISHED_TITLES:
        return title
    if extractor in (LITERATURE, PUBLISHED_INCEPTION):
        return PUBLISHED_TITLES[column]
    name = extractor.partition("@")[0]
    return f"{title}-{name}" if name else title


def metric_name(extractor: str) -> str:
    """What the Frechet distance in this feature space is called: "FID" only for the published Inception weights."""
    return printed_title("frechet", extractor)

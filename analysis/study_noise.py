"""The noise of a study: of its distances and losses, model by model and of all models together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from analysis.fit.common import floats
from analysis.names import METRIC, SHAPE, block_name, shape_name
from analysis.noise import Noise, noise_of
from analysis.slices import LOSS, scaling_slices
from analysis.trainings import apart, training_of

#: What is measured on other images than the held-out ones.
LOSS_TRAIN = "loss_train"

#: The noise of at most so many models is shown, each for itself.
MOST_MODELS = 12


@dataclass(frozen=True)
class StudyNoise:
    """The noise of one value, in rows that were measured alike and trained by one recipe."""

    column: str
    metric: str  #: printed name of the value
    context: str  #: how it was measured and trained, where that does not stand elsewhere
    conditions: Mapping[str, Any]
    together: Noise  #: of all models that were repeated
    models: tuple[tuple[str, Noise], ...]  #: by name, those of most values first, at most `MOST_MODELS`
    apart: tuple[str, ...]  #: the causes of chance that alone differ between trainings; empty where all do
    rows: pd.DataFrame  #: one a model, training and sampling


def study_noise(table: pd.DataFrame) -> list[StudyNoise]:
    """The noise of the distance, the held-out loss and the training loss, the largest group of rows first.

    A model is a block, size and patch size, at the last step that the fits take. What was not repeated is left out,
    and a value that never varies.

    Args:
        table: rows of `analysis.table.load_study` or `load_published`.
    """
    found = [_noise(METRIC, part.metric, part) for part in _parts(table, METRIC)]
    for part in _parts(table, LOSS):
        found += [_noise(LOSS, part.metric, part), _noise(LOSS_TRAIN, "training loss", part)]
    return [noise for noise in found if noise is not None]


@dataclass(frozen=True)
class _Part:
    rows: pd.DataFrame
    metric: str
    context: str
    conditions: Mapping[str, Any]


def _parts(table: pd.DataFrame, column: str) -> list[_Part]:
    """Rows that were measured alike and trained by one recipe, of all blocks."""
    parts: dict[tuple[int, str], _Part] = {}
    for piece in scaling_slices(table, column):
        key = id(piece.group), piece.variant
        rows = [parts[key].rows] if key in parts else []
        context = "; ".join(filter(None, (piece.variant, piece.group.brief if column == METRIC else "")))
        parts[key] = _Part(pd.concat([*rows, piece.table]), piece.metric, context, piece.group.conditions)
    return list(parts.values())


def _noise(column: str, name: str, part: _Part) -> StudyNoise | None:
    rows = part.rows[part.rows[column] > 0]
    rows = rows.assign(training=training_of(rows), sampling=_samplings(rows))
    rows = rows.drop_duplicates(["cell", "sampling"])
    models = rows.groupby(["block", *SHAPE], sort=False, dropna=False)
    rows = rows[models[column].transform("size") > 1]
    if (models[column].nunique() < 2).all():  # equal values tell nothing of noise
        return None
    several = rows["block"].nunique() > 1
    found = []
    groups = sorted(rows.groupby(["block", *SHAPE], sort=False, dropna=False), key=lambda group: -len(group[1]))
    for (block, size, patch), own in groups[:MOST_MODELS]:
        named = shape_name(str(size), patch) + (f", {block_name(str(block))}" if several else "")
        found.append((named, _of(own, column)))
    return StudyNoise(
        column=column,
        metric=name,
        context=part.context,
        conditions=part.conditions,
        together=_of(rows, column),
        models=tuple(found),
        apart=apart(rows),
        rows=rows,
    )


def _samplings(rows: pd.DataFrame) -> pd.Series[str]:
    """The sampling seed of each row, the evaluation where none is known; losses have none."""
    if "evaluation" not in rows:
        return pd.Series("", index=rows.index)
    return rows["sampling_seed"].astype(object).where(rows["sampling_seed"].notna(), rows["evaluation"]).astype(str)


def _of(rows: pd.DataFrame, column: str) -> Noise:
    keys = rows.groupby(["block", *SHAPE], sort=False, dropna=False).ngroup()
    training, sampling = (np.asarray(pd.factorize(rows[name])[0], np.intp) for name in ("training", "sampling"))
    return noise_of(floats(rows, column), np.asarray(keys, np.intp), training, sampling)

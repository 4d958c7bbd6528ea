"""Printed names of blocks, sizes, patch sizes and metrics, and their order."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import pandas as pd

#: The metric the scaling figures show; its printed name depends on the extractor, see `harness.runs.columns`.
METRIC = "frechet"

#: Metrics of generated images in the order of the paper's Figure 12, with the kernel distance.
METRICS = (METRIC, "sfid", "kid", "inception_score", "precision", "recall")

#: Models of one block design are the same if they agree in these. The size is depth and width; the patch size may be
#: missing.
SHAPE = ["size", "patch_size"]

#: The published sizes (Peebles & Xie 2023, Table 1): (depth, width) to name.
PUBLISHED_SIZES = {(12, 384): "S", (12, 768): "B", (24, 1024): "L", (28, 1152): "XL"}

#: The design that the others are compared with.
BASELINE = "adaln-zero"

#: The paper's objective; rows of older tables have no other.
DEFAULT_OBJECTIVE = "ddpm-hybrid"

#: What the measured loss of an objective is.
LOSS_NAMES = {DEFAULT_OBJECTIVE: "noise MSE", "flow": "velocity MSE"}

#: The recipe of rows whose table has no such column: unknown, and not the defaults.
NOT_STATED = "not stated"

#: How the literature writes the four block designs and a U-Net; adaLN-gate is this project’s own.
BLOCK_NAMES = {
    "adaln-zero": "adaLN-Zero",
    "adaln": "adaLN",
    "cross-attention": "Cross-attention",
    "in-context": "In-context",
    "adaln-gate": "adaLN-gate",
    "unet": "U-Net",
}


def block_name(block: str) -> str:
    """The design as the literature writes its block ("adaLN-Zero with flow"); an unknown one as it is."""
    name, *objective = block.split(" with ")
    return " with ".join([BLOCK_NAMES.get(name, name), *objective])


def design_noun(table: pd.DataFrame) -> str:
    """What the designs of a table differ in, in one word: "block", "objective", or "design" where it is more."""
    one = {block.partition(" with ")[0] for block in table["block"]}
    networks = without_shape(table).any()
    if table["block"].nunique() == len(one):
        return "design" if networks else "block"
    return "objective" if len(one) == 1 else "design"


def loss_name(objectives: Iterable[str]) -> str:
    """What the measured losses of these objectives are: "noise MSE", or "MSE" where nothing more is known."""
    return " and ".join(dict.fromkeys(LOSS_NAMES.get(name.partition(",")[0], "MSE") for name in objectives)) or "MSE"


def recipe_name(recipe: str) -> str:
    """A recipe in print: what differs from the defaults, or that nothing does."""
    return recipe or "the defaults"


def size_name(depth: int, width: int) -> str:
    """Name of a shape: "S", "B", "L" or "XL" for the published ones, "d4-w64" otherwise."""
    return PUBLISHED_SIZES.get((depth, width), f"d{depth}-w{width}")


def shape_name(size: str, patch: Any) -> str:
    """A model as in the paper, "XL/2": size and patch size; the size alone where there are no patches."""
    return size if pd.isna(patch) else f"{size}/{patch}"


def shape_names(table: pd.DataFrame) -> pd.Series[str]:
    """`shape_name` of every row."""
    return pd.Series(map(shape_name, table["size"], table["patch_size"]), index=table.index, dtype=object)


def without_shape(table: pd.DataFrame) -> pd.Series[bool]:
    """Which rows are of a network without depth or width, such as a U-Net."""
    return table["depth"].isna() | table["width"].isna()


def slug(text: str) -> str:
    """A shape or an objective as part of a file's name: "XL/2" is XL-p2."""
    return re.sub(r"[^A-Za-z0-9]+", "-", text.replace("/", "-p")).strip("-")


def patch_name(patch: Any) -> str:
    """A patch size in print; empty where there are no patches."""
    return "" if pd.isna(patch) else f"patch {patch}"


def size_order(table: pd.DataFrame) -> list[str]:
    """The sizes in the table, smallest first: by depth times width squared, as parameters grow.

    Sizes without depth and width come first, by name; numbers in a name count as numbers.
    """
    shapes = table[["size", "depth", "width"]].drop_duplicates("size").fillna({"depth": 0, "width": 0})
    keys = {}
    for size, depth, width in shapes.to_numpy():
        name = [int(part) if part.isdigit() else part for part in re.split(r"([0-9]+)", size)]
        keys[str(size)] = (int(depth) * int(width) ** 2, int(depth), name)
    return sorted(keys, key=keys.__getitem__)


def patch_order(table: pd.DataFrame) -> list[int]:
    """The patch sizes in the table, largest first (as compute grows), without missing ones."""
    return sorted({int(patch) for patch in table["patch_size"].dropna()}, reverse=True)


def plural(count: int, noun: str) -> str:
    """A count with its noun: "1 model", "3 models"."""
    return f"{count} {noun}{'s' * (count != 1)}"


def listed(*words: str) -> str:
    """Words as a list in a sentence: commas, and an "and" before the last."""
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1])))

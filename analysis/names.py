"""What blocks, sizes and metrics are called in print."""

from __future__ import annotations

import pandas as pd

#: The metric the scaling figures show; its printed name depends on the extractor, see `harness.runs.columns`.
METRIC = "frechet"

#: Metrics of generated images in the order of the paper's Figure 12, with the kernel distance.
METRICS = (METRIC, "sfid", "kid", "inception_score", "precision", "recall")

#: The published sizes (Peebles & Xie 2023, Table 1): (depth, width) to name.
PUBLISHED_SIZES = {(12, 384): "S", (12, 768): "B", (24, 1024): "L", (28, 1152): "XL"}

#: How the literature writes the four block designs; adaLN-gate is this project's own.
BLOCK_NAMES = {
    "adaln-zero": "adaLN-Zero",
    "adaln": "adaLN",
    "cross-attention": "Cross-attention",
    "in-context": "In-context",
    "adaln-gate": "adaLN-gate",
}


def block_name(block: str) -> str:
    """The block design as the literature writes it; an unknown one as it is."""
    return BLOCK_NAMES.get(block, block)


def size_name(depth: int, width: int) -> str:
    """Name of a shape: "S", "B", "L" or "XL" for the published ones, "d4-w64" otherwise."""
    return PUBLISHED_SIZES.get((depth, width), f"d{depth}-w{width}")


def size_order(table: pd.DataFrame) -> list[str]:
    """The sizes in the table, smallest first (width squared times depth, what parameters grow with)."""
    shapes = table[["size", "depth", "width"]].drop_duplicates()
    keys = [(int(depth) * int(width) ** 2, int(depth), str(size)) for size, depth, width in shapes.to_numpy()]
    return list(dict.fromkeys(size for _, _, size in sorted(keys)))


def patch_order(table: pd.DataFrame) -> list[int]:
    """The patch sizes in the table, largest first (as compute grows)."""
    return sorted({int(patch) for patch in table["patch_size"]}, reverse=True)


def plural(count: int, noun: str) -> str:
    """A count with its noun: "1 model", "3 models"."""
    return f"{count} {noun}{'s' * (count != 1)}"


def listed(*words: str) -> str:
    """Words as a list in a sentence: commas, and an "and" before the last."""
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1])))

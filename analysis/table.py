"""Read what `collect` wrote, and the published numbers, into data frames.

A table read here has the right columns and types, no contradicting rows, and no zero that means "missing".
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.csvfile import header_of, read_csv
from analysis.designs import by_design
from analysis.names import METRIC, NOT_STATED, size_name
from harness.errors import InputError
from harness.runs.columns import (
    ATTEMPT_COLUMNS,
    CURVE_COLUMNS,
    LITERATURE,
    NESTED_COLUMNS,
    RESULT_COLUMNS,
    Column,
    protocol_hash,
    without_seeds,
)

#: Says of a folder that its tables were put together, and of what (see `analysis.combine`).
SOURCES = "sources.json"

#: Folder of what a study's own extractors and autoencoders are worth, as `harness.runs.collect` fills it.
CARDS = "cards"

#: Gflops of one forward pass of the baselines of the paper's Figure 2 (right), at 256 x 256, as quoted there.
BASELINE_GFLOPS = {"ADM": 1120.0, "ADM-U": 742.0, "LDM-4": 104.0, "LDM-8": 57.0}

#: Columns of results.csv that a table by hand mostly has.
_COMMON = (
    "study", "depth", "width", "patch_size", "params", "seed", "batch_size", "recipe", "data", "samples", "sampler",
    "sampling_steps", "guidance", "extractor", "frechet",
)  # fmt: skip

_OWN_COLUMNS = (
    Column("source", "text", "", True, "table or figure of the paper", required=True),
    Column("model", "text", "", True, "name of the model", required=True),
    Column("resolution", "integer", "pixels", False, "side of an image"),
    Column("steps_k", "number", "1e3 steps", True, "training steps"),
    Column("gflops", "number", "1e9 multiply-adds", True, "one forward pass of one image", required=True),
    Column("cfg_scale", "number", "", True, "classifier-free guidance scale"),
    Column("decoder", "text", "", True, "decoder of the autoencoder"),
    Column("fid", "number", "", True, "FID-50K", required=True),
)


def _columns(names: str, required: Iterable[str] = ()) -> dict[str, Column]:
    """Columns of a published table by name; each is its own column or one of results.csv."""
    known = RESULT_COLUMNS | {column.name: column for column in _OWN_COLUMNS}
    return {name: replace(known[name], required=known[name].required or name in required) for name in names.split()}


_PUBLISHED_COLUMNS = _columns(
    "source model resolution patch_size depth width heads block steps_k gflops params_m cfg_scale sampling_steps "
    "samples decoder fid sfid inception_score precision recall",
    ["depth", "width", "patch_size"],
)
_BASELINE_COLUMNS = _columns("source model resolution fid sfid inception_score precision recall", ["resolution"])
_PUBLISHED_BATCH = 256  # Peebles & Xie 2023, section 4
_PUBLISHED_VAE_FACTOR = 8  # side of an image over the side of its latent


def load_study(folder: Path) -> pd.DataFrame:
    """The results of a study: `folder`/results.csv, with columns `size` and `place` added, see `designs.by_design`.

    Returns:
        One row per cell, step and evaluation, columns and units as `harness.runs.columns.RESULT_COLUMNS`, types as
        `analysis.csvfile.read_csv`, sorted by compute, name and step, otherwise as in the file. `size` is "S", "B",
        "L", "XL" or "d<depth>-w<width>"; where a network has no depth or width, the name of the cell without its seed.

    Raises:
        InputError: file missing or without rows, wrong columns, a wrong value, or two rows of the same cell, step
            and evaluation that disagree. One line: file, row, column, what is allowed.
    """
    return by_design(_read_study(folder))


def _read_study(folder: Path) -> pd.DataFrame:
    """As `load_study`, as the file has it."""
    path = folder / "results.csv"
    table = read_csv(path, RESULT_COLUMNS)
    if table.empty:
        raise InputError(f"{path}: has no rows; at least one trained cell is needed")
    return _checked(table, path, ("", LITERATURE) if (folder / SOURCES).exists() else ("",))


def _checked(table: pd.DataFrame, path: Path, extractors: tuple[str, ...]) -> pd.DataFrame:
    """The rows in order, with the column `size`, after the checks that a single value does not tell.

    `extractors` are allowed besides those with a hash.
    """
    known = table["extractor"].isin(extractors) | table["extractor"].str.fullmatch(r"[^@]+@[^@]+")
    if not known.all():
        odd, named = table["extractor"][~known].iloc[0], "".join(f", or {name}" for name in extractors if name)
        raise InputError(f"{path}: column extractor: {odd!r} is not allowed; allowed: name@hash{named}")
    table = _without_duplicates(table, str(path))
    table["size"] = _sizes(table)
    return _sorted(table, "gmacs", "name", "cell", "step")


def load_table(folder: Path) -> pd.DataFrame:
    """The results of a study, or the published numbers: whichever `folder` holds.

    Raises:
        InputError: the folder holds neither, or as `load_study`.
    """
    return load_published(folder) if is_published(folder) else load_study(folder)


def is_published(folder: Path) -> bool:
    """Whether a folder holds the published numbers rather than the results of a study.

    Raises:
        InputError: it holds neither.
    """
    if (folder / "results.csv").exists():
        return False
    if (folder / "published.csv").exists():
        return True
    raise InputError(f"{folder}: holds neither results.csv nor published.csv; `dit-harness collect` writes the former")


def load_studies(sources: Sequence[Path]) -> pd.DataFrame:
    """Several studies as one table, see `read_studies`; rows as `load_study`."""
    return by_design(read_studies(sources))


def read_studies(sources: Sequence[Path]) -> pd.DataFrame:
    """Several studies as one table, as their files have it; a cell, step and evaluation in two of them counts once.

    Where the first of two studies has trained a cell and the second has evaluated it, the evaluated row stays. Cells of
    two studies with one name get that of their study added. `attrs["studies"]` has the studies as they were named.

    Args:
        sources: folders as `load_table` reads them, and files as `load_file` does; of the paper's numbers the decoder
            stands for the autoencoder.

    Raises:
        InputError: as `load_study`; also two studies that disagree on the same cell, step and evaluation.
    """
    tables = [_of_study(source) for source in sources]
    if not tables:
        raise InputError("no study is given; needed: one folder or more")
    table = pd.concat(tables, ignore_index=True)
    about = ["study", "name", "protocol", "train_seconds", "sample_seconds"]
    added = [column.name for column in RESULT_COLUMNS.values() if column.added]
    measured = [column for column in RESULT_COLUMNS if column not in (*about, *added)]
    named = list(dict.fromkeys(table["study"]))
    table = table.drop_duplicates(measured)
    evaluated = pd.MultiIndex.from_frame(table.loc[table["evaluation"] != "", ["cell", "step"]])
    table = table[(table["evaluation"] != "") | ~pd.MultiIndex.from_frame(table[["cell", "step"]]).isin(evaluated)]
    studies = ", ".join(dict.fromkeys(table["study"]))
    table = _without_duplicates(table, f"studies {studies}", measured)
    table["name"] = _own_names(table)
    table = _sorted(table, "gmacs", "name", "cell", "step")
    table.attrs["studies"] = named
    return table


def load_file(path: Path) -> pd.DataFrame:
    """A table of anyone's in the columns of results.csv, of which it may leave out most; rows as `load_study`.

    Needed are name, block, gmacs and step; `study` is by default the name of the file, `cell` that of the model, and
    `evaluation` a hash of how it was measured. Rows of one name, step and evaluation are repeats: each is a cell of its
    own. Without a column `recipe` the recipe is `NOT_STATED`.

    Raises:
        InputError: as `load_study`; also a distance without the extractor whose features it is measured in.
    """
    needed = ("name", "block", "gmacs", "step")
    columns = {
        name: replace(column, added=name not in needed, required=name in needed)
        for name, column in RESULT_COLUMNS.items()
    }
    table = read_csv(path, columns, _COMMON)
    if table.empty:
        raise InputError(f"{path}: has no rows; at least one trained model is needed")
    odd = table[table[METRIC].notna() & (table["extractor"] == "")]
    if not odd.empty:
        raise InputError(
            f"{path}: column extractor: is empty for {odd['name'].iloc[0]}, which has a distance; needed: name@hash, "
            f"or {LITERATURE} for FID as the literature gives it"
        )
    batch, params = table["batch_size"].astype(float), table["params"].astype(float)
    table["train_gmacs"] = table["train_gmacs"].fillna(3 * table["gmacs"] * batch * table["step"])
    table["params_m"] = table["params_m"].fillna(params / 1e6)
    table["study"] = table["study"].where(table["study"] != "", path.stem)
    measured = (table["extractor"] != "") & (table["evaluation"] == "")
    hashes = [f"{protocol_hash(_plain(row))}-{row['sampling_seed']}" for _, row in table.iterrows()]
    table["evaluation"] = table["evaluation"].where(~measured, pd.Series(hashes))
    table = table.drop_duplicates(ignore_index=True)
    table["cell"] = table["cell"].where(table["cell"] != "", _cells_by_name(table))
    if "recipe" not in header_of(path):
        table["recipe"] = NOT_STATED
    return _checked(table, path, ("", LITERATURE))


def load_curves(folder: Path) -> pd.DataFrame:
    """Losses over training: `folder`/curves.csv, with `CURVE_COLUMNS`; empty without the file.

    Raises:
        InputError: as `load_study`.
    """
    return _read_if_there(folder / "curves.csv", CURVE_COLUMNS, "name", "cell", "step")


def load_nested(folder: Path) -> pd.DataFrame:
    """Distances at nested sample counts: `folder`/nested.csv, columns as `NESTED_COLUMNS`; empty without the file.

    Raises:
        InputError: as `load_study`.
    """
    return _read_if_there(folder / "nested.csv", NESTED_COLUMNS, "name", "cell", "step", "evaluation", "samples")


def load_attempts(folder: Path) -> pd.DataFrame:
    """Every attempt at a cell: `folder`/attempts.csv, with `ATTEMPT_COLUMNS`; empty without it.

    Raises:
        InputError: as `load_study`.
    """
    return _read_if_there(folder / "attempts.csv", ATTEMPT_COLUMNS, "name", "cell", "attempt")


def load_published(folder: Path) -> pd.DataFrame:
    """The numbers of Peebles & Xie (2023): `folder`/published.csv under the names of results.csv.

    Returns:
        One row per published value. gflops becomes gmacs (the paper counts a multiply-add as one), fid becomes
        frechet, steps_k * 1000 step; batch_size is 256, train_gmacs = 3 * gmacs * batch_size * step, tokens follow
        from the VAE's factor 8. source, model, resolution, decoder and cfg_scale are kept.

    Raises:
        InputError: as `load_study`.
    """
    path = folder / "published.csv"
    table = read_csv(path, _PUBLISHED_COLUMNS).rename(columns={"gflops": "gmacs", "fid": METRIC})
    if table.empty:
        raise InputError(f"{path}: has no rows")
    side = table["resolution"].astype(int)
    names = table["model"].str.removesuffix("-G") + " " + table["block"] + " " + side.astype(str)
    table = table.assign(
        study="paper",
        name=table["model"],
        cell=names.str.lower().str.replace(r"[^a-z0-9]+", "-", regex=True),
        step=(table["steps_k"] * 1000).round().astype("int64"),
        evaluation=[
            f"{row.source}, {row.decoder}, cfg {row.cfg_scale:g}, {row.samples}/{row.sampling_steps}"
            for row in table.itertuples()
        ],
        data=[f"imagenet-{pixels}" for pixels in side],
        tokens=((side // _PUBLISHED_VAE_FACTOR // table["patch_size"]) ** 2).astype("Int64"),
        params=(table["params_m"] * 1e6).round().astype("Int64"),
        **dict.fromkeys(("seed", "sampling_seed"), pd.array([pd.NA] * len(table), dtype="Int64")),
        batch_size=pd.array([_PUBLISHED_BATCH] * len(table), dtype="Int64"),
        sampler="ddpm",
        guidance=table["cfg_scale"],
        guidance_channels=["" if scale == 1 else "first-three" for scale in table["cfg_scale"]],
        labels="uniform",
        **dict.fromkeys(("protocol", "vae", "recipe", "objective", "seeds"), ""),
        ema=pd.array([True] * len(table), dtype="boolean"),
        extractor=LITERATURE,
        reference=[f"imagenet-{pixels}/train" for pixels in side],
        size=list(map(_size, table.itertuples(index=False))),
    )
    table["train_gmacs"] = 3 * table["gmacs"] * _PUBLISHED_BATCH * table["step"]
    table = _without_duplicates(table, str(path))
    kept = [*RESULT_COLUMNS, "size", "source", "model", "resolution", "decoder", "cfg_scale"]
    return by_design(_sorted(table.reindex(columns=kept), "gmacs", "name", "block", "step"))


def load_baselines(folder: Path) -> pd.DataFrame:
    """Other models of the paper's Tables 2 and 3: `folder`/baselines.csv; empty without the file.

    Returns:
        Columns source, model, resolution, frechet (FID), sfid, inception_score, precision, recall, and gmacs for the
        four models whose Gflops the paper's Figure 2 (right) gives at 256 x 256, NaN otherwise.

    Raises:
        InputError: as `load_study`.
    """
    table = _read_if_there(folder / "baselines.csv", _BASELINE_COLUMNS).rename(columns={"fid": METRIC})
    table["gmacs"] = table["model"].map(BASELINE_GFLOPS).where(table["resolution"] == 256).astype(float)
    return table


def missing_rows(table: pd.DataFrame, column: str = METRIC) -> pd.DataFrame:
    """The rows where `column` was not measured; report them, never fill them in."""
    return table[table[column].isna()]


def _size(row: Any) -> str:
    """The name of a row's size; for a network without depth or width, the cell's name without its seed."""
    if pd.isna(row.depth) or pd.isna(row.width):
        return without_seeds(row.name)
    return size_name(int(row.depth), int(row.width))


def _sizes(table: pd.DataFrame) -> list[str]:
    """`_size` of every row; models of unknown shape whose names differ in a number alone are one if they cost the same.

    "film-0" and "film-1" of equal block, compute and parameters are repeats without a seed, "M-1" and "M-2" of other
    compute are two models.
    """
    sizes = pd.Series(list(map(_size, table.itertuples(index=False))), index=table.index, dtype=object)
    stems = sizes.str.replace(r"(?<=.)[-_ ](?:seed|s)?\d+(?=$| \([^()]*\)$)", "", regex=True)
    shapeless = table["depth"].isna() | table["width"].isna()
    cost = table["gmacs"].astype(str) + " " + table["params"].astype(str)
    once = shapeless & (cost.groupby([table["block"], stems]).transform("nunique") == 1)
    return list(stems.where(once & (sizes.groupby([table["block"], stems]).transform("nunique") > 1), sizes))


def _cells_by_name(table: pd.DataFrame) -> pd.Series[str]:
    """The name of every row as its cell; of rows with one name, step and evaluation the later ones with a number."""
    count = table.groupby(["name", "step", "evaluation"], sort=False).cumcount()
    return table["name"].where(count == 0, table["name"] + " #" + (count + 1).astype(str))


def _sorted(table: pd.DataFrame, *columns: str) -> pd.DataFrame:
    return table.sort_values(list(columns), kind="stable", ignore_index=True) if columns else table


def _read_if_there(path: Path, columns: Mapping[str, Column], *order: str) -> pd.DataFrame:
    """A CSV file as `read_csv` reads it, sorted; no rows if there is no file."""
    return _sorted(read_csv(path, columns), *order) if path.exists() else pd.DataFrame(columns=list(columns))


def _of_study(source: Path) -> pd.DataFrame:
    """The rows of one source of `load_studies`."""
    if source.suffix == ".csv":
        return load_file(source)
    table = load_published(source) if is_published(source) else _read_study(source)
    if "decoder" in table:
        table["vae"] = table["decoder"]
    return table[[*RESULT_COLUMNS, "size"]]


def _own_names(table: pd.DataFrame) -> pd.Series[str]:
    """The name of each row's cell, everywhere the first; where another cell has it too, with its study."""
    cells = table.drop_duplicates("cell").set_index("cell")
    taken = cells["study"].groupby(cells["name"]).transform("nunique") > 1
    names = cells["name"].where(~taken, cells["name"] + " (" + cells["study"] + ")")
    return table["cell"].map(names)


def _plain(row: pd.Series[Any]) -> dict[str, Any]:
    """A row as `collect` would have written it."""
    return {str(key): None if pd.isna(value) or value == "" else _python(value) for key, value in row.items()}


def _without_duplicates(table: pd.DataFrame, where: str, columns: Sequence[str] | None = None) -> pd.DataFrame:
    """Drop repeated equal rows; refuse rows of the same cell, step and evaluation that disagree in `columns` (all)."""
    table = table.drop_duplicates(ignore_index=True)
    keys = ["cell", "step", "evaluation"]
    again = table[table.duplicated(keys, keep=False)]
    if again.empty:
        return table
    first = again.iloc[0]
    second = again[(again[keys] == first[keys]).all(axis=1)].iloc[1]
    column = next(c for c in columns or table.columns if _shown(first[c]) != _shown(second[c]))
    raise InputError(
        f"{where}: cell {first['cell']}, step {first['step']}, evaluation {first['evaluation'] or 'none'} occurs twice "
        f"with different values in column {column}: {_shown(first[column])} and {_shown(second[column])}; "
        "allowed: one row each"
    )


def _shown(value: Any) -> str:
    return "nothing" if pd.isna(value) or value == "" else repr(_python(value))


def _python(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else value

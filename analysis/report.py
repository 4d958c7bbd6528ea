"""Tables to a page: figures/* (PNG, SVG, PDF), fits.json, report.md and one self-contained report.html."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from analysis import table as tables
from analysis.answer import Unfinished
from analysis.answers import answers, untrained, untrained_models
from analysis.combine import apart, sources_of, studies_of
from analysis.conditions import draws_warning, mixture_warning, with_ways
from analysis.figures.scaling import baselines
from analysis.figures.style import SUFFIXES, ModelKey
from analysis.guidance import choices, without_searches
from analysis.horizon import ends, horizon_warning
from analysis.names import plural
from analysis.numbers import rounded
from analysis.page import Page, Table
from analysis.sections import records
from analysis.sections.blocks import blocks
from analysis.sections.cards import cards
from analysis.sections.evaluation import evaluation
from analysis.sections.forecasts import forecasts
from analysis.sections.frontier import frontier
from analysis.sections.noise import noise
from analysis.sections.paper import paper_tables
from analysis.sections.scaling import metrics, scaling
from analysis.sections.training import sampling, training
from analysis.slices import LOSS
from analysis.study import SliceFits
from analysis.topics import Topic, ranked, topics
from harness.files import write_bytes

TEMPLATES = Path(__file__).parent / "templates"

#: The figures that show the answers, by preference: what compute buys, then what training or another block does.
_LAW = ("metric-vs-gflops-log", "metric-vs-gflops")
_FRONT = (*_LAW[:1], "metric-over-steps", "loss-train-vs-heldout", "samples", *_LAW[1:])


@dataclass(frozen=True)
class ReportResult:
    """What `write_report` did."""

    paths: tuple[Path, ...]  #: files written, the page last
    summary: tuple[str, ...]  #: lines to print


def write_report(
    folder: Path,
    unfinished: Sequence[Unfinished] = (),
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> ReportResult:
    """Write figures, fits and the page of a study (`folder`/results.csv) or of the published numbers (published.csv).

    The same tables give the same bytes. Every file is replaced whole, the page last; figures that an earlier report
    drew and this one does not are removed.

    Args:
        folder: of a study, of several put together, or of the published numbers.
        unfinished: the studies whose cells are not all done; the page says so first.
        progress: called with the figures drawn, and all of them.

    Returns:
        The files written and a few lines that say what was found.

    Raises:
        InputError: no table in the folder, or a table that is wrong; nothing is written then.
    """
    page = _published(folder) if tables.is_published(folder) else _study(folder, unfinished)
    page.finish(progress)
    page.move_to_front(page.front_names or _FRONT)
    before = _figures_before(folder)
    page.fits["answers"] = [{"question": a.question, "answer": a.said, "trust": a.trust} for a in page.answers]
    page.fits["warnings"] = page.warnings
    page.fits["omitted"] = [{"what": what, "why": why} for what, why in page.omitted]
    page.fits["figures"] = sorted({path.stem for path in page.paths})
    fits, text, html = (folder / name for name in ("fits.json", "report.md", "report.html"))
    write_bytes(fits, (json.dumps(rounded(page.fits), indent=1, ensure_ascii=False) + "\n").encode())
    write_bytes(text, _render(page, "report.md.j2").encode())
    write_bytes(html, _render(page, "report.html.j2").encode())
    for name in before - set(page.fits["figures"]):
        for suffix in SUFFIXES:
            (folder / "figures" / f"{name}{suffix}").unlink(missing_ok=True)
    said = (*(answer.line for answer in page.answers), *page.summary, *(f"Warning: {line}" for line in page.warnings))
    return ReportResult((*page.paths, fits, text, html), said)


def _study(folder: Path, unfinished: Sequence[Unfinished] = ()) -> Page:
    table, curves, attempts = tables.load_study(folder), tables.load_curves(folder), tables.load_attempts(folder)
    sources, studies = sources_of(folder), studies_of(folder) or list(dict.fromkeys(table["study"]))
    name = ", ".join(studies)
    command = " ".join([*sources, "--output", str(folder)]) if sources else name
    data = ", ".join(sorted(set(table["data"]) - {""}))
    lead = f"{table['cell'].nunique()} cells on {data or 'unnamed data'}, {len(table)} rows of results."
    whole = f"Stud{'ies' if len(studies) > 1 else 'y'} {name}"
    title = sweep_title(folder) or whole
    page = Page(
        folder, title, lead if title == whole else f"{whole}: {lead}", fits={"study": name, "source": "results.csv"}
    )
    page.warnings += apart(table)
    chosen = choices(table)
    table = _begin(page, without_searches(ranked(table, studies), chosen))
    fitted: list[SliceFits] = []
    if untrained(table) is None:
        fitted = scaling(page, table)
        scaling(page, table, LOSS)
        frontier(page, table, curves)
        forecasts(page, table)
        noise(page, table, blocks(page, ends(table)))
        metrics(page, table)
        evaluation(page, table, tables.load_nested(folder))
        if names := untrained_models(table):
            some = f"The samples of {plural(len(names), 'model')} look like noise ({', '.join(names)})"
            page.warnings.append(f"{some}; a law through untrained models means little")
    else:
        kinds = ("slices", "loss slices", "frontier", "laws", "blocks", "block slopes", "noise")
        page.fits |= {kind: [] for kind in kinds}
        page.omit("Fits, frontier and block comparison", "the models are untrained: their samples look like noise")
    about = topics(table, studies)
    page.answers += answers(table, curves, fitted, about, unfinished)
    _measured(page, about)
    cards(page)
    training(page, table, curves)
    sampling(page, table, chosen)
    records.samples(page, table)
    _ways(page)
    records.results(page, table)
    records.costs(page, table, attempts)
    records.attempts(page, attempts)
    files = ["results.csv", "nested.csv", "curves.csv", "attempts.csv", "samples/*.png", "cards/*"]
    records.provenance(page, attempts, f"dit-harness report {command}", files)
    return page


def _published(folder: Path) -> Page:
    table, others = tables.load_published(folder), tables.load_baselines(folder)
    lead = (
        "The numbers published by Peebles & Xie, “Scalable Diffusion Models with Transformers” (ICCV 2023), read from "
        "the paper’s tables and figures; nothing was trained for this page."
    )
    page = Page(folder, "Published numbers of DiT", lead, fits={"study": "paper", "source": "published.csv"})
    table = _begin(page, table)
    about = topics(table)
    page.answers += answers(table, pd.DataFrame(), scaling(page, table), about)
    _measured(page, about)
    frontier(page, table)
    noise(page, table, blocks(page, table))
    training(page, table, None)
    sampling(page, table)
    _baseline_section(page, table, others)
    paper_tables(page, table, others)
    _ways(page)
    records.results(page, table)
    for what, why in (
        ("Figures 5 and 6 (FID over training steps)", "the paper’s tables give most models at 400,000 steps only"),
        ("Figure 7 (samples)", "the published tables hold no images"),
        ("Figure 12 (sFID, IS, precision, recall against compute)", "the tables give them for XL/2 only"),
        ("Figure 13 (training loss)", "the published tables hold no losses"),
    ):
        page.omit(what, why)
    records.provenance(page, pd.DataFrame(), "make paper", ["published.csv", "baselines.csv"])
    return page


def _begin(page: Page, table: pd.DataFrame) -> pd.DataFrame:
    """Give the page the look of its models and its ways of measuring; return the table with them."""
    table, page.ways = with_ways(table)
    page.key = ModelKey.of(table)
    page.warnings += filter(None, [mixture_warning(table), draws_warning(table), horizon_warning(table)])
    return table


def _measured(page: Page, about: Sequence[Topic]) -> None:
    """How the values of the answers were measured, where there are several ways."""
    spoken = {answer.about for answer in page.answers if answer.known}
    for topic in about if len(page.ways) > 1 else []:
        if topic.about in spoken or len(about) == 1:
            way = str(topic.piece.table["way"].iloc[0])
            page.summary.append(f"The answers are about values measured as {way}: {page.ways[way]}")


def _ways(page: Page) -> None:
    """The ways of measuring by their letter, if there are several."""
    if len(page.ways) > 1:
        opening = "Values measured in different ways do not compare; captions name the way by its letter."
        section = page.section("ways", "Ways of measuring", opening)
        section.tables.append(Table.of("How values were measured.", "Way | Conditions", page.ways.items()))


def sweep_title(folder: Path) -> str:
    """The title of the sweep in a study's folder; empty where there is none."""
    try:
        title = tomllib.loads((folder / "sweep.toml").read_text(encoding="utf-8")).get("title", "")
    except (OSError, ValueError):
        return ""
    return title if isinstance(title, str) else ""


def _baseline_section(page: Page, table: pd.DataFrame, others: pd.DataFrame) -> None:
    section = page.section("baselines", "Against other models", "DiT-XL/2 beside the models the paper compares with.")
    best = table[(table["size"] == "XL") & (table["decoder"] == "ft-EMA") & (table["guidance"] == 1)]
    model, known = best[best["resolution"] == 256], others[others["resolution"] == 256]
    caption = "N = 50,000; extractor inception-v3; ImageNet 256 x 256; no guidance; DiT-XL/2 after 7 million steps"
    page.draw(
        section, "baselines", "Bubble chart of FID against Gflops: DiT-XL/2, ADM, ADM-U, LDM-4 and LDM-8.",
        "As the paper’s Figure 2, right. Gflops of ADM, ADM-U, LDM-4 and LDM-8 as quoted there.",
        lambda: baselines(model, known, "FID", caption, page.key),
    )  # fmt: skip
    for row in known[known["gmacs"].isna()].itertuples():
        page.omit(f"{row.model} in the baseline figure", "its Gflops are not given, or it uses guidance")


def _figures_before(folder: Path) -> set[str]:
    """Names of the figures an earlier report wrote; empty where there was none."""
    try:
        names = json.loads((folder / "fits.json").read_text(encoding="utf-8"))["figures"]
        return {str(name) for name in names if "/" not in str(name) and "\\" not in str(name)}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return set()


def _render(page: Page, template: str) -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    blocks_alone: Any = {"trim_blocks": True, "lstrip_blocks": True}
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=template.endswith(".html.j2"), undefined=StrictUndefined,
        **blocks_alone,
    )  # fmt: skip
    environment.filters |= {"markdown": _as_markdown, "raised": _raised}
    shown = [section for section in page.sections if section.paragraphs or section.pictures or section.tables]
    return environment.get_template(template).render(page=page, sections=shown)


def _raised(text: str) -> Any:
    """A text with the exponents of G raised, as HTML."""
    from markupsafe import Markup, escape

    return Markup(re.sub(r"G\^(−?[0-9.]+)", r"G<sup>\1</sup>", str(escape(text))))


def _as_markdown(text: str) -> str:
    """A text whose signs mean themselves in Markdown."""
    return re.sub(r"([\\`*_\[\]<>|])", r"\\\1", text)

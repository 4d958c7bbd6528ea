"""Reports: every file, any number of rows, the same bytes again, no torch, nothing from outside."""

import hashlib
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import matplotlib as mpl
import pytest
from PIL import Image

from analysis.figures.style import SUFFIXES, Drawing
from analysis.report import write_report
from harness.errors import InputError
from harness.files import write_bytes

from .conftest import BAD_MESSAGE, PAPER, SHAPES, result_row, write_extras, write_results


class Page(HTMLParser):
    """What a reader meets: tags with attributes, and text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def digest(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def paper(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("results") / "paper"
    folder.mkdir()
    for name in ("published.csv", "baselines.csv"):
        shutil.copy(PAPER / name, folder / name)
    write_report(folder)
    return folder


@pytest.fixture
def unsaved(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are made, and their files hold nothing: to draw them takes most of the time of a report."""

    def save(figure: Drawing, folder: Path, name: str) -> tuple[Path, ...]:
        paths = tuple(folder / f"{name}{suffix}" for suffix in SUFFIXES)
        for path in paths:
            write_bytes(path, b"")
        return paths

    monkeypatch.setattr("analysis.page.save", save)


def test_the_committed_report_of_the_paper_is_of_this_code(paper: Path) -> None:
    for name in ("fits.json", "report.md"):
        assert (paper / name).read_text() == (PAPER / name).read_text(), "run `make paper`, and commit what it writes"


def test_the_paper(paper: Path) -> None:
    names = {path.stem for path in (paper / "figures").glob("*.png")}
    for suffix in ("svg", "pdf"):
        assert names == {path.stem for path in (paper / "figures").glob(f"*.{suffix}")}
    assert names >= {"metric-vs-gflops", "metric-vs-gflops-log", "bubbles", "training-compute", "blocks", "baselines"}
    fits = json.loads((paper / "fits.json").read_text())
    first = fits["slices"][0]
    assert first["power law"]["exponent"] == 0.364752
    assert first["correlation"]["semilog"] == -0.92985
    assert first["conditions"]["extractor"] == "inception-v3"
    assert [round(b["multiplier"], 2) for b in fits["blocks"]] == [1.72, 2.14, 3.40]
    page = Page(paper / "report.html")
    for what in (
        "What could not be drawn and why",
        "Figure 7",
        "inconclusive",
        "make paper",
        "the floor is not identified",
    ):
        assert what in page.text


def test_the_reference_values_stand_in_fits_json(paper: Path) -> None:
    """To three digits, as published or derived from the published pairs."""
    (first, *_) = json.loads((paper / "fits.json").read_text())["slices"]
    assert first["correlation"]["semilog"] == pytest.approx(-0.930, abs=5e-4)
    law = first["power law"]
    assert law["coefficient"] == pytest.approx(137.8, abs=0.05)
    assert law["exponent"] == pytest.approx(0.365, abs=5e-4)
    assert law["exponent_t"] == pytest.approx([0.268, 0.462], abs=5e-4)
    held = {(h["form"], h["scheme"]): h for h in first["held out"]}
    forms = ("power law", "params and tokens")
    errors = [held[form, "leave one out"]["mape_percent"] for form in forms]
    assert errors == pytest.approx([20.5, 6.5], abs=0.05)
    forecasts = [held[form, "forecast of XL/2 from the rest"]["predictions"]["DiT-XL/2"] for form in forms]
    assert [f["predicted"] for f in forecasts] == pytest.approx([26.5, 19.25], abs=0.05)
    assert {f["measured"] for f in forecasts} == {19.47}
    assert not first["power law with floor"]["identified"]
    assert "the floor sits on its bound 0" in first["power law with floor"]["flags"]


def test_figures_are_small_and_describe_themselves(paper: Path) -> None:
    for path in (paper / "figures").glob("*.png"):
        assert path.stat().st_size < 300_000
        with Image.open(path) as image:
            assert image.width == 975  # 3.25 inches at 300 dpi
    svg = (paper / "figures" / "metric-vs-gflops.svg").read_text()
    for text in ("Gflops (GMACs, one forward pass)", "N = 50,000", "inception-v3", "FID (lower is better)", "-0.930"):
        assert text in svg
    assert "<dc:date>" not in svg


def test_the_page_is_self_contained_and_accessible(paper: Path) -> None:
    page = Page(paper / "report.html")
    assert not [tag for tag, _ in page.tags if tag in ("script", "link", "iframe", "object")]
    for tag, attributes in page.tags:
        for key in ("src", "href"):
            value = attributes.get(key) or "#"
            assert value.startswith(("#", "data:image/png;base64,")), value
        if tag == "img":
            assert attributes["alt"]
        if attributes.get("class") == "scroll":
            assert attributes["tabindex"] == "0"
            assert attributes["aria-label"]
    html = (paper / "report.html").read_text(encoding="utf-8")
    assert "prefers-color-scheme: dark" in html
    assert "width=device-width" in html
    assert "url(" not in html
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch(r"h\d", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_what_is_committed_is_what_the_code_writes(paper: Path) -> None:
    committed = json.loads((PAPER / "fits.json").read_text())
    assert committed["figures"] == json.loads((paper / "fits.json").read_text())["figures"]
    assert {p.name for p in (PAPER / "figures").iterdir()} == {p.name for p in (paper / "figures").iterdir()}


def test_a_study(make_study: Callable[..., Path]) -> None:
    folder = make_study(steps=(500, 1000))
    settings = dict(mpl.rcParams)
    result = write_report(folder)
    assert dict(mpl.rcParams) == settings
    names = {path.stem for path in (folder / "figures").glob("*.png")}
    assert names == {
        "metric-vs-gflops", "metric-vs-gflops-log", "bubbles", "training-compute", "metric-residuals",
        "metric-held-out", "frontier", "metrics", "metric-over-steps", "metric-over-steps-by-size", "loss-vs-gflops",
        "loss-frontier", "loss-law", "loss-over-steps", "loss-zoom", "loss-train-vs-heldout", "samples",
    }  # fmt: skip
    assert all(path.exists() for path in result.paths)
    assert result.paths[-1].name == "report.html"
    html = (folder / "report.html").read_text(encoding="utf-8")
    page = Page(folder / "report.html")
    assert "FD-digits-cnn" in page.text
    assert "FID" not in page.text
    assert BAD_MESSAGE in page.text  # shown as text ...
    assert BAD_MESSAGE not in html  # ... and escaped
    assert not [tag for tag, _ in page.tags if tag == "script"]
    for value in (
        "2.9.1",
        "abc1234",
        "machine",
        "dit-harness report made-up",
        "8 done, 1 failed",
        "non-finite loss",
        "The cells ran on Fast (8 cells) and Slow (1 cell)",
    ):
        assert value in page.text
    assert any("failed" in line for line in result.summary)
    before = digest(folder)
    write_report(folder)
    assert digest(folder) == before
    assert not list(folder.rglob(".*"))  # no temporary files


@pytest.mark.usefixtures("unsaved")
@pytest.mark.parametrize("count", [1, 2])
def test_a_fit_that_is_not_possible_is_left_out_with_its_reason(make_study: Callable[..., Path], count: int) -> None:
    folder = make_study(shapes=SHAPES[:count])
    result = write_report(folder)
    text = Page(folder / "report.html").text
    assert f"{count} point{'s' * (count != 1)}; this needs at least" in text
    assert (folder / "figures" / "metric-vs-gflops.png").exists()
    assert any("no fit" in line for line in result.summary)
    assert json.loads((folder / "fits.json").read_text())["slices"][0]["power law"] is None


@pytest.mark.usefixtures("unsaved")
def test_what_has_checkpoints_has_a_frontier(make_study: Callable[..., Path]) -> None:
    folder = make_study(steps=(250, 500, 1000), extras=False)
    write_report(folder)
    (found, *_) = json.loads((folder / "fits.json").read_text())["frontier"]
    assert (found["checkpoints"], found["models"], found["metric"]) == (27, 9, "FD-digits-cnn")
    assert set(found["law"]) == {"coefficient", "exponent"}  # no interval that would claim too much
    text = Page(folder / "report.html").text
    for what in ("Compute-optimal frontier", "sFD-digits-cnn in Figure 12", "Model selection", "Forecast of the"):
        assert what in text


@pytest.mark.usefixtures("unsaved")
def test_names_are_escaped_everywhere(tmp_path: Path) -> None:
    evil = '<img src=x onerror="alert(1)">$x_1$'
    rows = [result_row(*shape) for shape in SHAPES[:5]]
    for row in rows:
        row |= {"name": evil + row["name"], "study": evil, "data": evil, "block": evil, "extractor": f"{evil}@<b>"}
    write_results(tmp_path, rows)
    write_report(tmp_path)
    page = Page(tmp_path / "report.html")
    assert all((attributes.get("src") or "data:").startswith("data:") for tag, attributes in page.tags)
    assert "b" not in {tag for tag, _ in page.tags}
    assert evil in page.text


@pytest.mark.usefixtures("unsaved")
def test_missing_metrics_are_reported(tmp_path: Path) -> None:
    rows = [result_row(*shape) for shape in SHAPES]
    rows[4]["frechet"] = ""
    rows[5] |= {"frechet": "", "evaluation": "", "extractor": "", "reference": "", "samples": "", "sampler": ""}
    write_results(tmp_path, rows)
    result = write_report(tmp_path)
    text = Page(tmp_path / "report.html").text
    assert any("2 of 9 rows have no" in line for line in result.summary)
    for row in rows[4:6]:
        assert f"{row['name']}, step 1,000" in text
    assert "Trained, not evaluated yet" in text
    assert json.loads((tmp_path / "fits.json").read_text())["slices"][0]["models"] == 7


@pytest.mark.usefixtures("unsaved")
def test_a_metric_without_a_logarithm_is_named(tmp_path: Path) -> None:
    rows = [result_row(*shape) for shape in SHAPES[:6]]
    rows[3]["frechet"] = 0.0
    write_results(tmp_path, rows)
    write_report(tmp_path)
    fits = json.loads((tmp_path / "fits.json").read_text())
    assert fits["slices"][0]["power law"] is None
    reasons = {entry["why"] for entry in fits["omitted"]}
    assert f"the FD-digits-cnn of {rows[3]['name']} is 0, which has no logarithm" in reasons


@pytest.mark.usefixtures("unsaved")
def test_no_metric_at_all(tmp_path: Path) -> None:
    write_results(tmp_path, [result_row(*shape, frechet="") for shape in SHAPES[:3]])
    assert "no row has a metric" in Page(write_report(tmp_path).paths[-1]).text


def test_mixed_extractors_get_fits_of_their_own(tmp_path: Path) -> None:
    rows = [result_row(*shape, evaluation=e, extractor=f"{e}@01") for shape in SHAPES[:6] for e in ("one", "two")]
    write_results(tmp_path, rows)
    write_report(tmp_path)
    pieces = json.loads((tmp_path / "fits.json").read_text())["slices"]
    assert [(piece["metric"], piece["models"]) for piece in pieces] == [("FD-one", 6), ("FD-two", 6)]
    page = Page(tmp_path / "report.html")
    assert [attributes for _, attributes in page.tags if attributes.get("role") == "note"]
    assert "They do not compare and are not fitted together; they differ in extractor (one@01, two@01)" in page.text
    assert "not comparable with other extractor" in (tmp_path / "figures" / "metric-vs-gflops.svg").read_text().replace(
        "\n", " "
    )
    assert (tmp_path / "figures" / "metric-vs-gflops-2.png").exists()


@pytest.mark.usefixtures("unsaved")
def test_blocks_with_seeds(make_study: Callable[..., Path]) -> None:
    designs = ("adaln-zero", "adaln", "cross-attention", "in-context")
    folder = make_study(shapes=[(4, 64, 2)], blocks=designs, seeds=(0, 1, 2), steps=(500, 1000))
    write_report(folder)
    assert {"blocks.png", "blocks-over-steps.png"} <= {path.name for path in (folder / "figures").iterdir()}
    found = json.loads((folder / "fits.json").read_text())["blocks"]
    assert len(found) == 6
    assert all(comparison["interval"] for comparison in found)


@pytest.mark.usefixtures("unsaved")
def test_figures_no_longer_drawn_are_removed(make_study: Callable[..., Path]) -> None:
    folder = make_study(shapes=SHAPES[:2])
    write_report(folder)
    own = folder / "figures" / "my own.png"
    own.write_bytes(b"")
    shutil.rmtree(folder / "samples")
    write_report(folder)
    assert not (folder / "figures" / "samples.png").exists()
    assert own.exists()


def test_a_broken_picture_is_no_obstacle(tmp_path: Path) -> None:
    rows = [result_row(*shape) for shape in SHAPES[:2]]
    write_extras(write_results(tmp_path, rows), rows)
    for path in (tmp_path / "samples").glob("*.png"):
        path.write_bytes(b"not a picture")
    assert "no sample pictures" in Page(write_report(tmp_path).paths[-1]).text


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds neither"):
        write_report(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_table_writes_nothing(tmp_path: Path) -> None:
    write_results(tmp_path, [result_row() | {"gmacs": "many"}])
    with pytest.raises(InputError, match="gmacs"):
        write_report(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["results.csv"]


def test_the_same_bytes_again_in_seconds_and_without_torch(paper: Path, tmp_path: Path) -> None:
    for name in ("published.csv", "baselines.csv"):
        shutil.copy(PAPER / name, tmp_path / name)
    script = (
        "import sys; from pathlib import Path; from analysis.report import write_report;"
        "write_report(Path(sys.argv[1])); import analysis.page, analysis.sections, analysis.figures;"
        "import matplotlib.pyplot as plt; assert not plt.get_fignums();"
        "sys.exit(any(m.split('.')[0] == 'torch' for m in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], cwd=PAPER.parents[1], check=False)
    assert done.returncode == 0
    assert digest(tmp_path) == digest(paper)


def test_the_wall_around_the_package() -> None:
    """The analysis imports no torch, and of the harness only records, errors and the writing of whole files."""
    allowed = {"harness.runs.columns", "harness.errors", "harness.files"}
    for path in (PAPER.parents[1] / "analysis").rglob("*.py"):
        for match in re.finditer(r"^\s*(?:from|import)\s+([\w.]+)", path.read_text(), flags=re.MULTILINE):
            root = match[1].split(".")[0]
            assert root not in ("torch", "sweeps"), path
            assert root != "harness" or match[1] in allowed, path


@pytest.mark.usefixtures("unsaved")
@pytest.mark.parametrize("beside", [[], SHAPES[:4]], ids=["alone", "beside DiTs"])
def test_networks_without_depth_width_and_patches(tmp_path: Path, beside: list[tuple[int, int, int]]) -> None:
    rows = [result_row(*shape, step=step) for shape in beside for step in (50, 1000)]
    for hidden in (4, 8, 16, 32, 64):
        for seed in (0, 1):
            name = f"mixer-hidden{hidden}-seed{seed}"
            about = {"cell": f"{hidden:06x}{seed:06x}", "name": name, "block": "mixer", "recipe": f"hidden={hidden}"}
            empty = dict.fromkeys(("depth", "width", "heads", "patch_size"), "")
            rows += [
                result_row(2, hidden, 2, seed=seed, step=step) | about | empty | {"tokens": 64} for step in (50, 1000)
            ]
    write_extras(write_results(tmp_path, rows), rows)
    write_report(tmp_path)
    fits = json.loads((tmp_path / "fits.json").read_text())
    (found,) = (piece for piece in fits["slices"] if piece["block"] == "mixer")
    assert found["models"] == 5
    assert found["power law"]["exponent"] > 0
    assert list(found["residuals percent"]["power law"]["by size"]) == [f"mixer-hidden{n}" for n in (4, 8, 16, 32, 64)]
    assert any(piece["block"] == "mixer" and piece["metric"] != "held-out loss" for piece in fits["frontier"])
    assert any([law["runs"] for law in found["by"]] == ["all models"] for found in fits["laws"])
    assert found["power law per patch size"] == found["residuals percent"]["power law"]["by patch size"] == {}
    assert {"metric-vs-gflops", "bubbles", "frontier", "metric-over-steps", "loss-zoom", "samples"} <= {
        path.stem for path in (tmp_path / "figures").glob("*.png")
    }

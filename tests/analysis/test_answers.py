"""The answers of a study: in words, with number, interval and trust; an untrained study gets no law."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from analysis import report
from analysis.answer import Answer, Unfinished
from analysis.answers import answers, answers_of, untrained_models
from analysis.report import write_report
from analysis.table import load_curves, load_published, load_study

from .conftest import PAPER, SHAPES, result_row, write_extras, write_results


def asked(found: tuple[Answer, ...], question: str) -> Answer:
    return next(answer for answer in found if answer.question.startswith(question))


def of_rows(folder: Path, rows: list[dict[str, object]]) -> tuple[Answer, ...]:
    return answers(load_study(write_results(folder, rows)), load_curves(folder))


def test_the_paper_answers() -> None:
    found = answers(load_published(PAPER), pd.DataFrame())
    compute = asked(found, "What does compute")
    assert "Twice the Gflops lower FID by 22.3 % (95 %: 16.9 to 27.4 %)" in compute.text
    assert "Within one patch size: −25.6 % at patch 2 (−31.5 to −19.3 %, 4 models), −18.1 % at patch 4" in compute.text
    assert pytest.approx(0.223, abs=5e-4) == 1 - 2**-0.364752
    assert compute.trust.startswith("fair: the law misses a model left out by 20.5 %")
    block = asked(found, "Which block")
    assert "adaLN-Zero is ahead, but no winner can be named, at XL/2: 19.5 FID, 22.8 % below adaLN (25.2)" in block.text
    assert block.trust.startswith("low: 1 training seed")
    assert "cannot be told" in asked(found, "Does it memorise").text
    assert "the form “params and tokens”, which predicts best, by 6.5 %" in compute.trust
    assert "475 Gflops (95 %: 8.54 to 13.3; params and tokens;" in asked(found, "What would a 4 times").text
    assert asked(found, "What to do next").text


def test_a_winner_needs_seeds_and_an_interval(tmp_path: Path) -> None:
    worse = {"adaln-zero": 1.0, "adaln": 2.0}
    rows = [
        result_row(4, 64, 2, block=block, seed=seed + first, frechet=10 * worse[block] + 0.1 * seed)
        for first, block in zip((0, 3), worse, strict=True) for seed in (0, 1, 2)
    ]  # fmt: skip
    found = of_rows(tmp_path, rows)
    assert found[0].question == "Which block wins?"  # nothing else can be told
    assert found[0].text.startswith("adaLN-Zero wins at d4-w64/2: 10.1 FD-digits-cnn, 49.8 % (95 %: 48.7 to 50.8 %)")
    assert found[0].trust.startswith("fair: Welch interval over 3 and 3 seeds")
    assert "no fit over 1 model" in asked(found, "What does compute").text


def test_what_is_sure_stands_beside_what_is_not(tmp_path: Path) -> None:
    means = {"adaln-zero": 10.0, "in-context": 10.1, "adaln": 12.0}
    rows = [
        result_row(depth, width, 2, block=block, seed=seed + first, frechet=mean + 0.2 * seed, gmacs=width * (mean - 5))
        for first, (block, mean) in zip((0, 3, 6), means.items(), strict=True) for seed in (0, 1, 2)
        for depth, width in ((2, 32), (4, 64))
    ]  # fmt: skip
    folder = write_results(tmp_path, rows)
    found = answers(load_study(folder), pd.DataFrame(), unfinished=[Unfinished(2, 8, "mine")])
    assert found[0].line == "Is it complete? No: 2 of 8 cells are not done: dit-harness launch mine"
    block, then = asked(found, "Which block"), asked(found, "What to do next").text
    assert block.text.startswith(
        "adaLN-Zero and In-context cannot be told apart at d4-w64/2: 10.2 and 10.3 FD-digits-cnn, a difference of 0.97"
    )
    assert "; adaLN (12.2) is worse by 19.6 % (95 %: " in block.text
    assert "At this shape In-context costs 1.02 and adaLN 1.40 times the Gflops of adaLN-Zero." in block.text
    assert "as good" not in block.text  # no multiplier of what is inconclusive
    assert block.trust.startswith("low for adaLN-Zero and In-context: the interval")
    assert "fair for adaLN: Welch" in block.trust
    assert then.startswith("2 of 8 cells are not done: dit-harness launch mine. More seeds will hardly tell adaLN-Zero")
    assert "5 show a gap from about 3.9 % on, and they differ by 0.97 %" in then  # power 0.8, SD 0.2 of 10.3
    page = report._study(folder)
    assert page.front_names[0] == "blocks-d4-w64-p2"  # of the shape in the text
    assert {"blocks-d2-w32-p2", "blocks-d4-w64-p2"} <= {picture.name for _, picture in page.sketches}


def test_every_block_converges(tmp_path: Path) -> None:
    late = {"adaln-zero": 99.5, "adaln": 60.0}
    rows = [
        result_row(*shape, block=block, step=step, frechet=value) for shape in SHAPES[:3] for block in late
        for step, value in ((500, 100.0), (1000, late[block]))
    ]  # fmt: skip
    answer = asked(of_rows(tmp_path, rows), "Is it converged")
    assert answer.text.startswith("No: ")  # although adaLN-Zero is
    assert "adaLN 40 %, adaLN-Zero 0.5 %" in answer.text


def test_losses_alone_give_a_law(tmp_path: Path) -> None:
    unmeasured = {"frechet": None, "extractor": "", "evaluation": "", "samples": None, "copies": None}
    rows = [
        result_row(*shape, loss_heldout=0.3 * (shape[1] / 32) ** -0.2, loss_train=0.3 * (shape[1] / 32) ** -0.2)
        | unmeasured
        for shape in SHAPES
    ]
    found = of_rows(tmp_path, rows)
    assert "lower held-out loss by" in asked(found, "What does compute").text
    assert "held-out loss at" in asked(found, "What would a 4 times").text
    assert "No sign of it" in asked(found, "Does it memorise").text
    assert "Write [[evaluation]] into the sweep" in asked(found, "What to do next").text


def test_no_trend_is_no_law(tmp_path: Path) -> None:
    values = (10.0, 10.4, 9.7, 10.1, 9.9, 10.3)
    rows = [result_row(*shape, frechet=value) for shape, value in zip(SHAPES, values, strict=False)]
    answer = asked(of_rows(tmp_path, rows), "What does compute")
    assert answer.text.startswith("No trend is shown")
    assert answer.trust.startswith("low")


@pytest.mark.parametrize(("late", "told"), [(50.0, "No"), (96.0, "Nearly"), (99.0, "Yes")])
def test_converged_where_it_no_longer_falls(tmp_path: Path, late: float, told: str) -> None:
    rows = [
        result_row(*s, step=step, frechet=value) for s in SHAPES[:3] for step, value in ((500, 100.0), (1000, late))
    ]
    answer = asked(of_rows(tmp_path, rows), "Is it converged")
    assert answer.text.startswith(f"{told}: FD-digits-cnn fell by {100 - late:.3g} % over the last 50 %")


def test_losses_tell_of_convergence_where_the_metric_cannot(make_study: Callable[..., Path]) -> None:
    folder = make_study()
    answer = asked(answers(load_study(folder), load_curves(folder)), "Is it converged")
    assert answer.text.startswith(
        "No: the held-out loss fell by 15.9 % over the last 50 % of training (median of 9 runs"
    )


@pytest.mark.parametrize(
    ("copies", "told"), [(0.0, "No sign of it: 0 of 1,500"), (0.5, "There are signs: 750 of 1,500")]
)
def test_copies_have_an_interval(tmp_path: Path, copies: float, told: str) -> None:
    answer = asked(of_rows(tmp_path, [result_row(*s, copies=copies) for s in SHAPES]), "Does it memorise")
    assert answer.text.startswith(told)
    assert ("(95 %: 0 to 0.25 %)" in answer.text) == (copies == 0)


def test_an_untrained_study_is_called_that(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    noise: dict[str, Any] = {"precision": 0.0, "recall": 0.002, "loss_heldout": 0.99}
    rows = [result_row(*shape, **noise, frechet=float(rng.uniform(99, 101))) for shape in SHAPES[:4]]
    write_extras(write_results(tmp_path, rows), rows)
    result = write_report(tmp_path)
    assert result.summary[0].startswith(
        "Is it trained? No: it is untrained. The samples of all 4 models look like noise"
    )
    assert not any("Twice the Gflops" in line for line in result.summary)
    text = (tmp_path / "fits.json").read_text()
    assert "exponent" not in text
    assert "it is untrained" in (tmp_path / "report.html").read_text()
    rows[0] |= {"precision": 0.5, "recall": 0.5}  # one that is trained
    table = load_study(write_results(tmp_path, rows))
    assert len(untrained_models(table)) == 3
    assert asked(answers(table, pd.DataFrame()), "What does compute")


def test_the_same_answers_everywhere(make_study: Callable[..., Path]) -> None:
    folder = make_study(shapes=SHAPES[:2])
    (folder / "sweep.toml").write_text('title = "My *own* sizes"\n')
    said = write_report(folder).summary
    assert answers_of(folder) == said[: len(answers_of(folder))]
    html, text = ((folder / f"report.{kind}").read_text() for kind in ("html", "md"))
    assert "<h1>My *own* sizes</h1>" in html
    assert text.startswith("# My \\*own\\* sizes\n")
    for answer in answers(load_study(folder), load_curves(folder)):
        assert f"**{answer.question}**" in text
        assert answer.question in html
        assert html.index(answer.question) < html.index("<nav")  # before everything else
    assert html.count("<img") == html.count("figcaption><strong>")
    assert html[: html.index("<nav")].count("<img") == 2
    assert text.count("](figures/") == 2
    assert html.count("digits-cnn@0123abcd") == 1  # how it was measured stands once


def test_a_way_of_measuring_has_a_letter(tmp_path: Path) -> None:
    rows = [result_row(*s, evaluation=e, extractor=f"{e}@01") for s in SHAPES[:2] for e in ("one", "two")]
    write_report(write_results(tmp_path, rows))
    html = (tmp_path / "report.html").read_text()
    assert "measured as A" in html
    assert "measured as B" in html
    assert html.count("extractor two@01") == 1

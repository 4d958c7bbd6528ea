"""What the extractors and autoencoders that were trained here are worth."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from analysis.figures.samples import single_picture
from analysis.names import listed
from analysis.page import Page, Section, Table
from analysis.table import CARDS
from harness.files import read_json

_JUDGE = ("name", "content_hash", "learns", "heldout_accuracy", "chance", "floors", "checks")
_ENCODER = ("samples", "psnr", "mean_absolute_error", "distances")

_OPENING = (
    "Networks that were trained on images like these, before the models: what judges the samples, and what encodes."
)


def cards(page: Page) -> None:
    """The cards of a study's folder; no section without any."""
    judges = _read(page.folder, "extractor", _JUDGE)
    encoders = _read(page.folder, "autoencoder", _ENCODER)
    if not judges and not encoders:
        return
    section = page.section("cards", "The judge and the autoencoder" if encoders else "The judge", _OPENING)
    if judges:
        section.tables.append(_judges(list(judges.values())))
    if encoders:
        section.tables.append(_encoders(list(encoders.values())))
        for number, path in enumerate(encoders, 1):
            _pictures(page, section, path.with_suffix(".png"), f"-{number}" if number > 1 else "")


def _read(folder: Path, kind: str, keys: tuple[str, ...]) -> dict[Path, dict[str, Any]]:
    """The cards of a kind, by file; those that cannot be read are left out."""
    paths = sorted((folder / CARDS).glob(f"{kind}-*.json"))
    return {path: card for path in paths if (card := read_json(path, keys)) is not None}


def _judges(found: list[dict[str, Any]]) -> Table:
    caption = (
        "Extractors. Accuracy: on held-out images, of what the extractor learned; chance is always naming the most "
        "frequent class. Floor: the distance of real held-out images to those that were learned. Checks: whether the "
        "distance rises step by step as real images are made worse."
    )
    rows = []
    for card in found:
        passed, missed = ([c["what"] for c in card["checks"] if c["rises"] is rises] for rises in (True, False))
        floor = card["floors"][0]
        rows.append((
            f"{card['name']}@{card['content_hash'][:8]}", card["learns"], card["heldout_accuracy"], card["chance"],
            floor["frechet"], floor["samples"][0], listed(*passed) if passed else "nothing",
            listed(*missed) if missed else "none",
        ))  # fmt: skip
    heads = "Extractor | Learned | Accuracy | Chance | Floor | Images of the floor | Rises under | Does not rise under"
    return Table.of(caption, heads, rows)


def _encoders(found: list[dict[str, Any]]) -> Table:
    caption = (
        "Autoencoders: held-out images, encoded and decoded. To themselves: the distance that no model of the latents "
        "can be expected to beat. To the training images: what a perfect model of the latents would score; untouched: "
        "the same for the images as they are."
    )
    rows = [
        (card["samples"], card["psnr"], card["mean_absolute_error"], label, d["held-out"], d["train"], d["floor"])
        for card in found
        for label, d in card["distances"].items()
    ]
    heads = "Images | PSNR, dB | Mean error, of 255 | Extractor | To themselves | To training images | Untouched"
    return Table.of(caption, heads, rows)


def _pictures(page: Page, section: Section, path: Path, ending: str) -> None:
    page.draw(
        section, f"reconstructions{ending}", "Held-out images and their reconstructions.",
        "Rows 1 and 3 are held-out images, rows 2 and 4 what the autoencoder makes of them.",
        lambda: single_picture(path, "Held-out images (rows 1, 3), reconstructed (rows 2, 4)"),
    )  # fmt: skip

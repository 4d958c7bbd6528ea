"""What the extractors and autoencoders that were trained here are worth, in the report."""

from pathlib import Path
from typing import Any

from PIL import Image

from analysis.page import Page
from analysis.sections.cards import cards
from harness.files import write_json

JUDGE: dict[str, Any] = {
    "name": "emoji", "content_hash": "0123456789abcdef", "learns": "classes", "heldout_accuracy": 0.75, "chance": 0.5,
    "floors": [{"what": "held-out vs train", "samples": [700, 6800], "frechet": 3.5}],
    "checks": [{"what": "noise", "rises": True}, {"what": "blur", "rises": False}],
}  # fmt: skip

ENCODER: dict[str, Any] = {
    "samples": 150, "psnr": 21.5, "mean_absolute_error": 7.25,
    "distances": {"emoji@01234567": {"held-out": 1.5, "train": 4.5, "floor": 3.5}},
}  # fmt: skip


def page_of(folder: Path) -> Page:
    page = Page(folder, "", "")
    cards(page)
    page.finish()
    return page


def test_nothing_trained_here_has_no_section(tmp_path: Path) -> None:
    assert page_of(tmp_path).sections == []


def test_every_card_is_a_row(tmp_path: Path) -> None:
    write_json(tmp_path / "cards" / "extractor-folder-1.json", JUDGE)
    write_json(tmp_path / "cards" / "extractor-folder-2.json", JUDGE | {"checks": JUDGE["checks"][:1]})
    write_json(tmp_path / "cards" / "extractor-folder-3.json", {"name": "torn"})
    write_json(tmp_path / "cards" / "autoencoder-folder-1.json", ENCODER)
    picture = tmp_path / "cards" / "autoencoder-folder-1.png"
    Image.new("RGB", (397, 133), "red").save(picture)
    page = page_of(tmp_path)
    (section,) = page.sections
    judges, encoders = section.tables
    assert judges.rows == (
        ("emoji@01234567", "classes", "0.75", "0.5", "3.5", "700", "noise", "blur"),
        ("emoji@01234567", "classes", "0.75", "0.5", "3.5", "700", "noise", "none"),
    )
    assert encoders.rows == (("150", "21.5", "7.25", "emoji@01234567", "1.5", "4.5", "3.5"),)
    assert [drawn.name for drawn in section.pictures] == ["reconstructions"]
    assert page.omitted == []


def test_latents_of_before_have_no_picture_and_it_is_said(tmp_path: Path) -> None:
    write_json(tmp_path / "cards" / "autoencoder-folder-1.json", ENCODER)
    page = page_of(tmp_path)
    assert page.sections[0].pictures == []
    ((_, why),) = page.omitted
    assert "autoencoder-folder-1.png" in why

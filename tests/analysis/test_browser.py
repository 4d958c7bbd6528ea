"""The report in a real browser: no console message, nothing wider than a phone, keyboard focus on every wide table."""

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from analysis.report import write_report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")

PROBE = """<script>addEventListener("load", () => {
  const wide = document.documentElement.scrollWidth, view = document.documentElement.clientWidth;
  const focusable = [...document.querySelectorAll(".scroll")].every(box => box.tabIndex === 0);
  const broken = [...document.images].filter(image => !image.naturalWidth).length;
  document.body.innerHTML = `<p id="probe">${wide <= view} ${focusable} ${broken}</p>`;
});</script>"""


def chromium(page: Path, profile: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [
        str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
        f"--user-data-dir={profile}", "--virtual-time-budget=5000", "--enable-logging=stderr", *options, page.as_uri(),
    ]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)


def test_the_report_opens_without_a_word(make_study: Callable[..., Path], tmp_path: Path) -> None:
    folder = make_study(shapes=[(2, 32, 4), (2, 32, 2), (4, 64, 4), (4, 64, 2), (6, 96, 2)])
    write_report(folder)
    done = chromium(folder / "report.html", tmp_path / "profile", "--dump-dom")
    assert "CONSOLE" not in done.stderr, done.stderr
    assert "What compute buys" in done.stdout
    probe = folder / "probe.html"
    probe.write_text((folder / "report.html").read_text().replace("</body>", PROBE + "</body>"))
    # headless Chromium makes no window narrower than 500 pixels
    done = chromium(probe, tmp_path / "profile", "--dump-dom", "--window-size=500,900")
    assert '<p id="probe">true true 0</p>' in done.stdout

"""A real browser without a window: a page as it stands once it has been loaded, and how it fits a screen."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html import escape, unescape
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome")
QUIET = ("--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-quic")
PROBE = """
const frame = document.querySelector("iframe");
frame.onload = () => {
  const inside = frame.contentDocument, root = inside.documentElement, wide = [];
  for (const one of inside.querySelectorAll("body *")) {
    const box = one.getBoundingClientRect();
    if (box.width && box.right > root.clientWidth + 1 && !one.closest(".scroll, svg")) wide.push(one.tagName + "." + one.className);
  }
  const dark = frame.contentWindow.matchMedia("(prefers-color-scheme: dark)").matches;
  const found = {width: root.clientWidth, needs: root.scrollWidth, wide: wide.slice(0, 9), dark};
  document.querySelector("#found").textContent = JSON.stringify(found);
};
"""


def browser() -> str | None:
    """Path of a Chromium; None where there is none."""
    return next((found for name in NAMES if (found := shutil.which(name))), None)


def loaded(page: Path, folder: Path, *options: str) -> str | None:
    """The page after a browser has loaded it and run what there is to run, as markup; None without a browser."""
    program = browser()
    if program is None:
        return None
    words = ("--headless", "--no-sandbox", "--disable-gpu", *QUIET, f"--user-data-dir={folder}", "--virtual-time-budget=2000", *options)
    done = subprocess.run((program, *words, "--dump-dom", page.as_uri()), capture_output=True, text=True, timeout=600, check=False)
    assert "</html>" in done.stdout, done.stderr[-2000:]
    return done.stdout


def framed(page: Path, width: int, height: int = 2000, probe: str = "") -> str:
    """A page that shows ``page`` in a frame as wide as a screen of ``width`` pixels (a window cannot be narrower than 500)."""
    inside = escape(page.read_text(encoding="utf-8"), quote=True)
    frame = f'<iframe width="{width}" height="{height}" style="border:0;display:block" srcdoc="{inside}"></iframe>'
    script = f"<pre id=found></pre><script>{probe}</script>" if probe else ""
    return f'<!DOCTYPE html><html><meta name="color-scheme" content="light dark"><body style="margin:0">{frame}{script}</body></html>'


def fit(page: Path, folder: Path, width: int, *, dark: bool = False) -> dict | None:
    """How ``page`` fits a screen: {width, needs, wide, dark}, widths in pixels; None without a browser.

    ``wide`` names elements that reach out of the page and lie in no box that scrolls.
    """
    folder.mkdir(parents=True, exist_ok=True)
    outer = folder / f"frame_{width}_{dark}.html"
    outer.write_text(framed(page, width, probe=PROBE), encoding="utf-8")
    text = loaded(outer, folder / f"browser_{width}_{dark}", *(["--force-dark-mode"] if dark else []))
    if text is None:
        return None
    found = re.search(r'<pre id="found">(.*?)</pre>', text, re.DOTALL)
    assert found is not None
    assert found[1], "the frame was not loaded"
    return json.loads(unescape(found[1]))

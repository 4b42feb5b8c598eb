"""Pictures of parts of a page for docs/: `python scripts/screenshots.py PAGE.html NAME`, with a Chromium in PATH.

Of every part there is `docs/NAME-PART.png`, as wide as a column of text, in few colours, so that it stays small.
"""

from __future__ import annotations

import base64
import io
import json
import sys
import tempfile
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.pages.browser import Browser, find_browser  # noqa: E402, of this checkout

PARTS = ("verdict", "bits", "classes", "layers")
# Pixels; a part that is longer is cut.
WIDTH, LONGEST = 900, 700
COLOURS = 96


def main() -> None:
    """Open the page and take its parts one by one."""
    page, name = Path(sys.argv[1]).resolve(), sys.argv[2]
    program = find_browser()
    if program is None:
        sys.exit("no Chromium is in PATH")
    with tempfile.TemporaryDirectory() as folder, Browser(program, Path(folder)) as browser:
        browser.show(WIDTH)
        browser.open(page)
        # What follows the window would lie across the part.
        browser.ask("document.querySelectorAll('.told').forEach((line) => (line.style.position = 'static'))")
        for part in PARTS:
            where = f"JSON.stringify(document.getElementById('{part}').getBoundingClientRect())"
            box = json.loads(browser.ask(where))
            clip = {"x": 0, "y": box["y"], "width": WIDTH, "height": min(box["height"], LONGEST) + 8, "scale": 1}
            taken = browser.call("Page.captureScreenshot", clip=clip, captureBeyondViewport=True)["data"]
            picture = Image.open(io.BytesIO(base64.b64decode(taken))).convert("RGB")
            few = picture.quantize(COLOURS, dither=Image.Dither.NONE)
            few.save(ROOT / "docs" / f"{name}-{part}.png", optimize=True)


if __name__ == "__main__":
    main()

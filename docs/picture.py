"""The picture of a report in README: its upper part, as Chromium draws it.

python docs/picture.py report.html docs/images/report.png
"""

import io
import sys
from pathlib import Path

from PIL import Image
from selenium import webdriver
from selenium.webdriver.support.wait import WebDriverWait

WIDTH, HEIGHT = 1200, 1640
COLOURS = 64  # of the palette, which makes the file small
_DRAWN = "return [...document.querySelectorAll('.plot')].every(p => p.querySelector('.main-svg'))"


def picture(page: Path) -> bytes:
    """The upper part of a page as PNG."""
    options = webdriver.ChromeOptions()
    for argument in ("--headless=new", "--no-sandbox", "--hide-scrollbars", f"--window-size={WIDTH},{HEIGHT}"):
        options.add_argument(argument)
    with webdriver.Chrome(options=options) as browser:
        browser.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": WIDTH, "height": HEIGHT, "deviceScaleFactor": 1, "mobile": False},
        )
        browser.get(page.absolute().as_uri())
        WebDriverWait(browser, 30).until(lambda it: it.execute_script(_DRAWN))
        shot = Image.open(io.BytesIO(browser.get_screenshot_as_png()))
    out = io.BytesIO()
    shot.convert("RGB").quantize(COLOURS).save(out, "PNG", optimize=True)
    return out.getvalue()


if __name__ == "__main__":
    Path(sys.argv[2]).write_bytes(picture(Path(sys.argv[1])))

"""The picture of a report in README: its upper part, as Chromium draws it.

make demo && python docs/picture.py build/demo/study docs/images/report.png
python docs/picture.py report.html report.png     of a page that `lensjax rank --html` wrote
"""

import io
import sys
from pathlib import Path

from PIL import Image
from selenium import webdriver
from selenium.webdriver.support.wait import WebDriverWait

from lensjax.report.study_files import PAGE

WIDTH, HEIGHT = 1200, 1640
COLOURS = 255  # of the palette, which makes the file small
_DRAWN = "return [...document.querySelectorAll('.plot')].every(p => p.querySelector('.main-svg'))"


def picture(report: Path) -> bytes:
    """The upper part of a report as PNG.

    Args:
      report: A study's folder, or a page.
    """
    page = report / PAGE if report.is_dir() else report
    if not page.is_file():
        raise SystemExit(f"There is no page {page}; `lensjax report {report}` writes that of a study.")
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
    if len(sys.argv) != 3:
        raise SystemExit("Name a study's folder or a page, and the PNG file to write.")
    Path(sys.argv[2]).write_bytes(picture(Path(sys.argv[1])))

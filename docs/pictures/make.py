"""Draw the two pictures of the README that no benchmark draws: the method, and the page on which people label.

    python docs/pictures/make.py

The page needs playwright and a Chromium, `pip install playwright` and `CHROMIUM=/path/to/chromium`.
"""

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from al_lightning.report import toy_acquisitions

HERE = Path(__file__).parent
RUN = "runs/unlabelled_images"
SERVE = "import sys; from al_lightning.labelling.page.command import main; sys.exit(main(sys.argv[1:]))"


def draw_method(path: Path) -> None:
    """Draw what BALD and BatchBALD acquire among near-copies."""
    figure = toy_acquisitions()
    figure.savefig(path, dpi=100)


def draw_page(path: Path, *, chromium: str) -> None:
    """Take a picture of the page on which the digits are labelled."""
    import playwright.sync_api as playwright  # noqa: PLC0415 - needed for this picture alone

    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, "-m", "al_lightning.datasets.digit_images", "digits"], cwd=folder, check=True)
        fit = [sys.executable, "-m", "al_lightning", "fit", "--config", "unlabelled_images.yaml"]
        subprocess.run(fit, cwd=folder, check=False)  # asks for ten labels, and ends with status 75
        command = [sys.executable, "-c", SERVE, RUN, "--who", "ann", "--port", "0"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=folder) as server:
            try:
                address = re.findall(r"http://\S+", server.stdout.readline() if server.stdout else "")[0]
                with playwright.sync_playwright() as driver:
                    browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
                    page = browser.new_page(viewport={"width": 900, "height": 620})
                    page.goto(address)
                    page.wait_for_selector("img")
                    page.wait_for_timeout(500)
                    page.screenshot(path=str(path))
                    browser.close()
            finally:
                server.terminate()


if __name__ == "__main__":
    draw_method(HERE / "method.png")
    draw_page(HERE / "page.png", chromium=os.environ.get("CHROMIUM", "/usr/bin/chromium"))

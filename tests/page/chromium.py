"""A Chromium for the page's tests: found, or installed where that can be; `python -m tests.page.chromium` says which.

Playwright's own build comes from its CDN; where that can't be reached, Debian's and Ubuntu's package does as well.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
HINT = (
    "The page's tests need Chromium, and it could not be installed here. Install it (`apt-get install chromium`, or "
    "`python -m playwright install --with-deps chromium`), or set FLYWHEEL_CHROMIUM to the path of one."
)


def find() -> str | None:
    """Return the path of a Chromium on this machine, None where there is none."""
    named = os.environ.get("FLYWHEEL_CHROMIUM")
    if named:
        return named if Path(named).exists() else None
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        own = playwright.chromium.executable_path
    return own if Path(own).exists() else next((path for name in NAMES if (path := shutil.which(name))), None)


def install() -> str | None:
    """Return the path of a Chromium, installed if there was none; None where nothing worked."""
    ways = [[sys.executable, "-m", "playwright", "install", "chromium"]]
    if shutil.which("apt-get"):
        sudo = [] if os.geteuid() == 0 else ["sudo", "-n"]
        apt = [*sudo, "env", "DEBIAN_FRONTEND=noninteractive", "apt-get"]
        ways += [[*apt, "update", "-qq"], [*apt, "install", "-y", "-qq", "--no-install-recommends", "chromium"]]
    for way in ways:
        if found := find():
            return found
        try:
            subprocess.run(way, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=600, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            print(f"{' '.join(way)}: {error}", file=sys.stderr)
    return find()


if __name__ == "__main__":
    path = install()
    print(path or HINT, file=sys.stdout if path else sys.stderr)
    sys.exit(0 if path else 1)

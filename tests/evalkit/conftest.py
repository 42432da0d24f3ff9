import os
import shutil
from pathlib import Path

import pytest

DATA = Path(os.environ.get("PREFKIT_REAL_DATA") or Path(__file__).parents[3] / "shared" / "data")


@pytest.fixture(scope="session")
def real_data():
    if not DATA.is_dir():
        pytest.skip(f"no real data: {DATA} is absent and PREFKIT_REAL_DATA is not set")
    return DATA


@pytest.fixture(scope="session")
def chromium():
    """The system's Chromium, driven by Playwright; absent, the tests say so and skip."""
    sync_api = pytest.importorskip("playwright.sync_api")
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        pytest.skip("no Chromium on PATH: run `make system`")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()

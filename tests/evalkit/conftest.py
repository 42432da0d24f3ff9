import os
from pathlib import Path

import pytest

DATA = Path(os.environ.get("PREFKIT_REAL_DATA") or Path(__file__).parents[3] / "shared" / "data")


@pytest.fixture(scope="session")
def real_data():
    if not DATA.is_dir():
        pytest.skip(f"no real data: {DATA} is absent and PREFKIT_REAL_DATA is not set")
    return DATA

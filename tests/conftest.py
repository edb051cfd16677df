"""What every test may use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# A change is judged by the same examples everywhere; HYPOTHESIS_PROFILE=random looks for new ones.
# How long an example takes says how busy the machine is, not whether the code is right.
_PATIENT = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("same", derandomize=True, **_PATIENT)
settings.register_profile("random", print_blob=True, **_PATIENT)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))

os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def limbeck_data() -> Path:
    """The folder of real data sets (environment variable LIMBECK_DATA); skips where it is missing."""
    folder = Path(os.environ.get("LIMBECK_DATA", Path(__file__).parents[1] / ".." / "shared" / "data")).resolve()
    if not folder.is_dir():
        pytest.skip(f"no real data: {folder} is missing (set LIMBECK_DATA)")
    return folder

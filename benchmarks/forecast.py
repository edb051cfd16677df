"""How far the forecast of a pilot is from what then happens.

    python benchmarks/forecast.py [CONFIG …]

For each configuration (by default both examples of the library): the forecast, then the pilot itself in an empty folder
and then the ratio of their times. Fails where one is more than 30 % off.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

from limbeck.config import load_config
from limbeck.pilots import estimate, plan, run_pilot


def main() -> int:
    """Print one line a configuration; 1 where a forecast is more than 30 % off."""
    failed = False
    for source in sys.argv[1:] or ["example:adult", "example:digits_shortcut"]:
        config = load_config(source)
        data, arms = plan(config)
        forecast = estimate(data, arms, len(config.seeds)).seconds
        with tempfile.TemporaryDirectory() as folder:
            started = time.perf_counter()
            run_pilot(config, output=Path(folder) / "run")
            taken = time.perf_counter() - started
        failed |= not 0.7 <= forecast / taken <= 1.3
        print(f"{source:30s} forecast {forecast:6.1f} s, taken {taken:6.1f} s, ratio {forecast / taken:.2f}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())

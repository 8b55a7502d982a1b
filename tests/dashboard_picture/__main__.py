"""Make the picture of the dashboard in docs/ anew, from a run of the scripted load that takes some minutes.

    python -m tests.dashboard_picture [SECONDS]

It needs Prometheus and matplotlib. By hand, after the dashboard changed.
"""

import sys
import tempfile
from pathlib import Path

from tests.dashboard_picture.picture import Place, picture
from tests.monitoring.prometheus_run import RATE_INTERVAL, WORKER, observed

PICTURE = Path(__file__).parents[2] / "docs" / "pictures" / "dashboard.png"


def main(seconds: float) -> None:
    """Run, and draw."""
    with tempfile.TemporaryDirectory() as folder, observed(Path(folder), 0.7 * seconds, 0.3 * seconds) as run:
        # The first moments have no rates yet.
        place = Place(run.prometheus.url, WORKER, run.began + 5, run.ended, RATE_INTERVAL)
        empty = picture(place, PICTURE)
    print(f"{PICTURE}: {PICTURE.stat().st_size} bytes; no data in {empty or 'no panel'}")


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 300)

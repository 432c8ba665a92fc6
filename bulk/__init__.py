"""Many proteins on many devices: planned by a driver, computed by Ray's actors, written once each."""

import os

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # read when ray is imported

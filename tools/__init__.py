"""What people run by hand; no stage imports it."""

import os

# From version 1.29, ONNX Runtime sends statistics to its maker unless this is set before it is imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

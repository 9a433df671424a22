"""A model behind HTTP: uploads in, predictions out, computed together, with the newest model and within limits."""

import importlib.util

if any(importlib.util.find_spec(name) is None for name in ("fastapi_offline", "prometheus_client", "python_multipart")):
    raise SystemExit("A server needs FastAPI and what goes with it: pip install -c constraints.txt -e '.[serve]'")

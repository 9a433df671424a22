"""What a person, an API call or a schedule starts: one file a flow."""

import os

# A flow without a server starts one for itself; the first time it sets up a database, which takes 20 s on two cores,
# and by default Prefect gives up after just that.
os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "60")

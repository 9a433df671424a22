"""What a person, an API call or a schedule starts: one file a flow."""

import os

# Of the server that a flow without one starts for itself: the first time it sets up a database, which takes 10 to 20 s
# on two cores, and Prefect gives up after 20; its telemetry fills the terminal with stacks where it gets nowhere.
os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "60")
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")

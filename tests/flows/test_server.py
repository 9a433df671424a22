"""The server that `make ui` starts: many clients may write at once, even on SQLite."""

from concurrent.futures import ThreadPoolExecutor

import pytest


@pytest.mark.slow
def test_no_client_is_refused_because_others_are_writing(deployed):
    deployment = deployed.ask("deployments/name/pipeline/cpu")["id"]
    later = {"type": "SCHEDULED", "state_details": {"scheduled_time": "2100-01-01T00:00:00Z"}}

    def press_submit_and_think_better_of_it(_: int) -> str:
        run = deployed.ask(f"deployments/{deployment}/create_flow_run", {"state": later})["id"]
        return deployed.ask(f"flow_runs/{run}/set_state", {"state": {"type": "CANCELLED"}})["status"]

    with ThreadPoolExecutor(8) as people:
        assert set(people.map(press_submit_and_think_better_of_it, range(64))) == {"ACCEPT"}

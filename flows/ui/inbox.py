"""Watch the inbox and emit an event when files have arrived, which starts a retraining.

    PREFECT_API_URL=http://server:4200/api python -m flows.ui.inbox [--every 15]

`make ui` starts it. A store that can notify of new files may post the same event to the server instead:

    curl -X POST "$PREFECT_API_URL/events" -u "$PREFECT_API_AUTH_STRING" -H 'Content-Type: application/json' -d '[{
      "id": "'$(uuidgen)'", "occurred": "'$(date -u +%FT%TZ)'", "event": "rootstock.inbox.arrived",
      "resource": {"prefect.resource.id": "rootstock.ingest.inbox"}, "payload": {}}]'
"""

import argparse
import json
import logging
import math
import time
from contextlib import suppress

from prefect.events import emit_event

from rootstock.config import params_file
from rootstock.ingest import inbox
from rootstock.system.errors import ParamsError, RootstockError
from rootstock.system.files import write
from tasks.bridge import causes
from tasks.bridge.workspace import LOCAL, PARAMS

log = logging.getLogger("inbox")
ARRIVED = "rootstock.inbox.arrived"
ANNOUNCED = LOCAL / "inbox.announced"  # files in the inbox at the last check


def announce() -> int:
    """Emit an event if there are files that were not there at the last check; return their number.

    Raises:
        RootstockError: params.yaml is invalid, or the store of the inbox does not answer.
    """
    params = params_file.load(PARAMS)
    settings = params.retrain
    delivery = inbox.list_delivery(settings.inbox, settings.settle_seconds, params.ingest.sources)
    items = (*delivery.labelled.items, *delivery.unlabelled.items)
    there = {f"{item.path}\t{item.stamp}" for item in items}
    before = _announced()
    if there != before:
        LOCAL.mkdir(exist_ok=True)
        write(ANNOUNCED, json.dumps(sorted(there)))
    if new := len(there - before):
        counts = {"new": new, "labelled": len(delivery.labelled.items), "unlabelled": len(delivery.unlabelled.items)}
        resource = {"prefect.resource.id": "rootstock.ingest.inbox", "prefect.resource.name": settings.inbox}
        emit_event(ARRIVED, resource, payload=counts)
        log.info("%s new files in %s", f"{new:,}", settings.inbox)
    return new


def _announced() -> set[str]:
    with suppress(FileNotFoundError, ValueError):  # another version's
        return set(json.loads(ANNOUNCED.read_bytes()))
    return set()


def main() -> None:
    """Watch until a signal; a store that does not answer is logged once and polled again."""
    parser = argparse.ArgumentParser(description="Watch the inbox and emit an event when files arrive.")
    parser.add_argument("--every", type=float, default=15, help="seconds between checks")
    every = parser.parse_args().every
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    reported = ""
    with causes.entry_point("inbox", needs_server=True):
        if not 0 < every < math.inf:
            raise ParamsError(f"--every is {every:g}; expected a number of seconds above 0.")
        while True:
            try:
                with causes.described():
                    announce()
                reported = ""
            except RootstockError as error:
                if str(error) != reported:
                    reported = str(error)
                    log.warning("%s", error)
            time.sleep(every)


if __name__ == "__main__":
    main()

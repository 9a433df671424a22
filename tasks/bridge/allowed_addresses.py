"""Which addresses a run's parameters may name: those under the roots of this machine (rootstock/system/roots.py)."""

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path

from rootstock.config.params import Params
from rootstock.ingest import samples, torchvision_sets
from rootstock.system import packages
from rootstock.system.addresses import check_protocols
from rootstock.system.errors import ParamsError
from rootstock.system.roots import Roots, allows

ROOTS = "ROOTSTOCK_ROOTS"  # environment variable of a worker: folders and URL prefixes, separated by ;

HOST = re.compile(r"[^/\\:]+:\d+")  # without a protocol


def roots(committed: Params | None) -> Roots:
    """Return the roots: those of ROOTSTOCK_ROOTS, or the workspace and what the committed params.yaml names."""
    if named := os.environ.get(ROOTS):
        return [os.path.expanduser(entry.strip()) for entry in named.split(";") if entry.strip()]  # noqa: PTH111 - or URL
    return [str(Path.cwd()), *(dict.fromkeys(addresses(committed).values()) if committed else ())]


def addresses(params: Params) -> dict[str, str]:
    """Return every parameter that names a folder, file or host, by key."""
    found = {f"ingest.sources[{n}].path": source.path for n, source in enumerate(params.ingest.sources)}
    found |= {"backbone.weights": params.backbone.weights, "retrain.inbox": params.retrain.inbox}
    found |= {"extract.cluster": params.extract.cluster or "", "extract.store": params.extract.store or ""}
    return {key: address for key, address in found.items() if address and not _is_a_name(key, address)}


def _is_a_name(key: str, address: str) -> bool:
    """Whether it is a built-in name: a sample, a public dataset, or the weights of a package."""
    kind, _, name = address.partition(":")
    if key == "backbone.weights":
        return address in ("pretrained", "random") or address.startswith(packages.PREFIX)
    return key.startswith("ingest") and name in {"sample": samples.SAMPLES, "torchvision": torchvision_sets.SETS}.get(
        kind, ()
    )


def check(given: Params, before: Params, roots: Callable[[], Roots]) -> None:
    """Check the addresses in the parameters of a run.

    Args:
        given: the parameters of the run.
        before: those of params.yaml; addresses that are there already are allowed.
        roots: returns the allowed roots; called only if there is something to check.

    Raises:
        ParamsError: an address is under none of the roots.
    """
    known = set(addresses(before).values())
    if new := {key: address for key, address in addresses(given).items() if address not in known}:
        under = roots()
        for key, address in new.items():
            _check(key, address, under)


def check_places(places: Mapping[str, str], roots: Roots) -> None:
    """Check the addresses that a run was given beside its parameters, by name.

    Raises:
        ParamsError: an address is under none of the roots.
    """
    for name, address in places.items():
        _check(name, address, roots)


def _of_host(address: str) -> str:
    """Return host:port as a URL, as Dask and Ray read it."""
    return address if "://" in address else f"tcp://{address}"


def _check(key: str, address: str, roots: Roots) -> None:
    try:
        if key != "extract.cluster":
            check_protocols(address)
    except ValueError as error:
        raise ParamsError(f"{key} is {address!r}; {error}") from None
    place = address
    if key == "extract.cluster":  # whose workers get the images: a host, never a folder
        place, roots = _of_host(address), [_of_host(root) if HOST.fullmatch(root) else root for root in roots]
    if not allows(place, roots):
        raise ParamsError(
            f"{key} is {address!r}, which this run was given and which lies under none of {', '.join(roots)}; name a "
            f"place under one of these, add it to params.yaml by hand, or to {ROOTS} of the worker"
        )

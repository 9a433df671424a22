"""How a model is served: where, to whom, within which limits; and the options of a command that serves one."""

import argparse
import ipaddress
import os
from dataclasses import dataclass, field

from rootstock.model.serving.limits import MIB, Limits
from rootstock.system.errors import ParamsError

TOKEN = "ROOTSTOCK_TOKEN"  # noqa: S105  the environment variable, which `ps` does not show
SHORTEST_TOKEN = 16  # characters
PORTS = 2**16
OPTIONS = {  # of the limits: name, unit, and what it is
    "images": ("max-images", 1, "images of a request"),
    "body_bytes": ("max-mb", MIB, "MiB of a request"),
    "megapixels": ("max-megapixels", 1, "megapixels of an image; larger ones are rejected"),
    "upload_s": ("upload-seconds", 1, "time for a request to arrive"),
    "answer_s": ("answer-seconds", 1, "time for an answer, from then on"),
    "queue": ("queue", 1, "images that may wait; more are refused with 503"),
    "uploads_bytes": ("memory-mb", MIB, "MiB of all uploads in memory; more are refused with 503"),
    "connections": ("connections", 1, "open connections"),
    "batch_wait_s": ("batch-ms", 0.001, "milliseconds that a decoded image waits for others"),
}


@dataclass(frozen=True)
class Settings:
    """How a model is served: where, to whom, within which limits; `follow_s` is how often a new model is looked for."""

    host: str = "127.0.0.1"
    port: int = 8000
    token: str = ""
    top: int = 3
    follow_s: float = 2.0
    limits: Limits = field(default_factory=Limits)

    @property
    def is_loopback(self) -> bool:
        """Whether only programs on this machine can connect."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"


def parser(description: str) -> argparse.ArgumentParser:
    """Return the parser of a command that serves a model, with the options that all of them have."""
    parser, own = argparse.ArgumentParser(description=description), Settings()
    parser.add_argument(
        "--host", default=own.host, help=f"address to listen on (default: {own.host}, this machine only)"
    )
    parser.add_argument("--port", type=int, default=own.port, help=f"0 for any free one (default: {own.port})")
    parser.add_argument("--without-token", action="store_true", help=f"let other machines in without {TOKEN}")
    parser.add_argument("--top", type=int, default=own.top, help=f"classes of an answer (default: {own.top})")
    parser.add_argument("--verbose", action="store_true", help="log each request")
    for limit, (name, unit, what) in OPTIONS.items():
        default: int | float = getattr(own.limits, limit)
        kind = int if isinstance(default, int) and unit == 1 else float
        value = kind(default / unit)
        parser.add_argument(
            f"--{name}", dest=limit, metavar="N", type=kind, default=value, help=f"{what} (default: {value:g})"
        )
    return parser


def settings_of(asked: argparse.Namespace) -> Settings:
    """Return the settings that options and the environment ask for.

    Raises:
        ParamsError: one is out of its range, or other machines would be let in without a token.
    """
    limits = Limits(**{limit: getattr(asked, limit) * unit for limit, (_, unit, _) in OPTIONS.items()})
    limits.check()
    settings = Settings(asked.host, asked.port, os.environ.get(TOKEN, ""), asked.top, limits=limits)
    if not 0 <= settings.port < PORTS:
        raise ParamsError(f"--port is {settings.port}; expected 0 to {PORTS - 1}.")
    if settings.top < 1:
        raise ParamsError(f"--top is {settings.top}; expected at least 1.")
    if 0 < len(settings.token) < SHORTEST_TOKEN:
        raise ParamsError(f"{TOKEN} is shorter than {SHORTEST_TOKEN} characters; `openssl rand -hex 16` makes one.")
    if not (settings.is_loopback or settings.token or asked.without_token):
        raise ParamsError(
            f"--host {settings.host} lets other machines in: set {TOKEN}, which they have to know, or add "
            "--without-token if something in front of this server checks who asks."
        )
    return settings

"""What a server lets in: limits on size, number and time, so that no request harms the others."""

from dataclasses import dataclass

from rootstock.system.errors import ParamsError

MIB = 2**20


@dataclass(frozen=True)
class Limits:
    """The limits of one request, and of all together.

    Of one request: `images`, `body_bytes`, `upload_s` until its body has arrived, `answer_s` from then to the answer,
    and `megapixels` of an image. Of all: `queue`, the images that wait, `uploads_bytes`, the bodies in memory, and
    `connections`. `batch_wait_s` is how long a decoded image waits for others, to be computed with them.
    """

    images: int = 64
    body_bytes: float = 32 * MIB
    upload_s: float = 30.0
    answer_s: float = 10.0
    megapixels: float = 100.0  # as in Model.predict
    queue: int = 128
    uploads_bytes: float = 256 * MIB
    connections: int = 256
    batch_wait_s: float = 0.02

    def check(self) -> None:
        """Check that the limits are positive and that the largest request fits those of all requests.

        Raises:
            ParamsError: they are not, or it does not.
        """
        for name, value in vars(self).items():
            if not 0 <= value < float("inf") or (value == 0 and name != "batch_wait_s"):
                raise ParamsError(f"The limit {name} is {value:g}; expected more than 0.")
        if self.queue < self.images:
            raise ParamsError(
                f"The queue holds {self.queue} images, and a request may have {self.images}, which would never be let "
                "in; expected a longer queue."
            )
        if self.uploads_bytes < self.body_bytes:
            raise ParamsError(
                f"All uploads together may take {self.uploads_bytes / MIB:g} MiB, and one {self.body_bytes / MIB:g}; "
                "expected at least as much for all."
            )


class Refused(Exception):  # noqa: N818  an answer to a client, not an error of this program
    """A request is answered with a status and a sentence instead of predictions."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status, self.sentence = status, sentence
        self.close = False  # the connection, as the rest of the body will not come


def overloaded(what: str) -> Refused:
    """Return the refusal of a request that a less busy server would take."""
    return Refused(503, f"The server is busy: {what}. Try again in a moment.")

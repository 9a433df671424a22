"""Reads the images of a request, in memory: size and time are checked as the body arrives, not afterwards."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager

from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from rootstock.model.serving.limits import MIB, Limits, Refused, overloaded

FORM = "multipart/form-data"
FIELD = "images"
RAW = ("image/", "application/octet-stream")
EXPECTED = f"Expected {FORM} with a file per image (curl --form {FIELD}=@photo.jpg), or the bytes of one as image/*."
LONGEST_NAME = 255  # characters of a file name
Image = tuple[str, bytes]


class Memory:
    """How many bytes of uploads are in memory; for one event loop."""

    def __init__(self, most: float) -> None:
        self.most, self.held = most, 0

    def take(self, size: int) -> None:
        """Take some bytes.

        Raises:
            Refused: there are not as many.
        """
        if self.held + size > self.most:
            raise overloaded("its memory for uploads is full")
        self.held += size

    def give_back(self, size: int) -> None:
        """Release bytes."""
        self.held -= size


@asynccontextmanager
async def received(
    request: Request, limits: Limits, memory: Memory, admit: Callable[[], None]
) -> AsyncIterator[list[Image]]:
    """Yield the images of a request, each with its name; its bytes count as held until the block ends.

    Args:
        request: whose body has not been read.
        limits: of size and time.
        memory: for the body.
        admit: called before the body is read; raises Refused if there is no room for another image.

    Raises:
        Refused: the body is too large, too slow, or holds no images. Of what still comes of it, uvicorn keeps nothing:
            many clients read no answer before they have sent all; connections.py ends those that send on and on.
        ClientDisconnect: the client is gone.
    """
    body = _Body(request, limits, memory)
    try:
        admit()
        yield await _images(request, body, limits)
    except Refused as refused:
        refused.close = body.will_not_come
        raise
    finally:
        memory.give_back(body.size)


class _Body:
    """The body of a request; it is refused where it exceeds a limit."""

    def __init__(self, request: Request, limits: Limits, memory: Memory) -> None:
        self._limits, self._memory, self.size = limits, memory, 0
        self._stream = request.stream()
        self._until = asyncio.get_running_loop().time() + limits.upload_s
        self.will_not_come = request.headers.get("expect", "").lower() == "100-continue"  # unless we ask for it
        declared = request.headers.get("content-length", "")
        self._declared = int(declared) if declared.isdecimal() else 0

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """Yield the body as it arrives."""
        self._check_size(self._declared)
        while (chunk := await self._next()) is not None:
            self.will_not_come = False
            self._check_size(self.size + len(chunk))
            self._memory.take(len(chunk))
            self.size += len(chunk)
            yield chunk

    async def _next(self) -> bytes | None:
        try:
            async with asyncio.timeout_at(self._until):
                return await anext(self._stream, None)
        except TimeoutError:
            self.will_not_come = True
            raise Refused(408, f"The upload did not end within {self._limits.upload_s:g} s.") from None

    def _check_size(self, size: int) -> None:
        if size > self._limits.body_bytes:
            raise Refused(413, f"The request is too large; expected at most {self._limits.body_bytes / MIB:g} MiB.")


async def _images(request: Request, body: _Body, limits: Limits) -> list[Image]:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == FORM:
        images = await _files_of_form(request, body, limits)
    elif kind.startswith(RAW):
        parts = [chunk async for chunk in body.chunks()]
        images = [("image 0", b"".join(parts))] if body.size else []
    else:
        raise Refused(415, f"The content type is {kind[:LONGEST_NAME]!r}. {EXPECTED}")
    if not images:
        raise Refused(400, f"The request holds no image. {EXPECTED}")
    return images


async def _files_of_form(request: Request, body: _Body, limits: Limits) -> list[Image]:
    parser = _InMemory(request.headers, body.chunks(), max_files=limits.images, max_fields=0)
    try:
        form = await parser.parse()
    except (MultiPartException, ValueError) as error:  # the latter for names in an encoding that is none
        why = error.message if isinstance(error, MultiPartException) else "Its encoding is not known."
        if "Too many files" in why:
            raise Refused(413, f"The request has too many images; expected at most {limits.images}.") from None
        if "Too many fields" in why:
            raise Refused(400, f"A field of the form is no file. {EXPECTED}") from None
        raise Refused(400, f"The form cannot be read: {why} {EXPECTED}") from None
    uploads = [upload for _, upload in form.multi_items() if isinstance(upload, UploadFile)]
    return [(_name(upload, number), await upload.read()) for number, upload in enumerate(uploads)]


def _name(upload: UploadFile, number: int) -> str:
    return (upload.filename or "")[:LONGEST_NAME] or f"image {number}"


class _InMemory(MultiPartParser):
    """A parser of forms that writes nothing to disk; the limit of the body bounds its memory."""

    spool_max_size = 2**62

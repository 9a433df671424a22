"""Image files of every kind, each with the pixels that it shows."""

import io
import struct
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageCms

from tests.image_writers import chunk, png, tiff
from tests.images import encoded, picture

Range = tuple[float, float]


@dataclass(frozen=True)
class Kind:
    """A file, the upright RGB pixels that it shows, and the value range it needs, if it needs one to be told."""

    name: str
    data: bytes
    shows: np.ndarray
    extension: str
    value_range: Range | None = None
    tolerance: float = 0


RGB = np.asarray(picture(1, 37, 29))
GREY = np.asarray(picture(2, 37, 29, "L"))
ALPHA = np.asarray(picture(3, 37, 29, "L"))
PALETTE = np.random.default_rng(0).integers(0, 256, (256, 3)).astype(np.uint8)


def grey(values: np.ndarray) -> np.ndarray:
    return np.repeat(np.asarray(values, np.uint8)[..., None], 3, axis=2)


def over_white(colours: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    share = alpha[..., None] / 255
    return (colours * share + 255 * (1 - share)).round().astype(np.uint8)


def quantised(bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Return grey values of some bits, and the 8-bit values that they display as."""
    most = 2**bits - 1
    values = (GREY.astype(float) * most / 255).round().astype(np.uint16)
    return values, grey((values * 255.0 / most).round())


def pngs() -> list[Kind]:
    kinds = []
    for bits in (1, 2, 4, 8):
        values, shows = quantised(bits)
        kinds.append(Kind(f"png grey {bits}", png(values, bits, 0), shows, "png"))
        plte = chunk(b"PLTE", PALETTE[: 2**bits].tobytes())
        kinds.append(Kind(f"png palette {bits}", png(values, bits, 3, plte), PALETTE[values], "png"))
    deep = [
        ("grey", GREY, 0, grey(GREY)), ("rgb", RGB, 2, RGB),
        ("grey and alpha", np.dstack([GREY, ALPHA]), 4, over_white(grey(GREY), ALPHA)),
        ("rgba", np.dstack([RGB, ALPHA]), 6, over_white(RGB, ALPHA)),
    ]  # fmt: skip
    for name, values, colour, shows in deep:
        for interlaced in (False, True):
            how = f"{name}{' interlaced' if interlaced else ''}"
            data = png(values.astype(np.uint16) * 257, 16, colour, interlaced=interlaced)
            kinds.append(Kind(f"png {how} 16", data, shows, "png", tolerance=1 if "a" in name.split(" ")[-1] else 0))
            kinds.append(Kind(f"png {how} 8", png(values, 8, colour, interlaced=interlaced), shows, "png", tolerance=1))
        twelve = png(values.astype(np.uint16) * 16, 16, colour)
        if colour in (0, 2):  # alpha is of 16 bits, whatever the colours are
            kinds.append(Kind(f"png {name} 12 in 16", twelve, shows, "png", (0, 255 * 16)))
    clear = int(GREY[3, 3])
    holed = np.where(GREY[..., None] == clear, 255, grey(GREY)).astype(np.uint8)
    trns = chunk(b"tRNS", struct.pack(">H", clear * 257))
    kinds.append(Kind("png grey 16, one value clear", png(GREY.astype(np.uint16) * 257, 16, 0, trns), holed, "png"))
    return kinds


def tiffs() -> list[Kind]:
    kinds = []
    for order in "<>":
        big = " big-endian" if order == ">" else ""
        for bits in (1, 2, 4, 8, 10, 12, 14, 16):
            values, shows = quantised(bits)
            if bits == 16:
                values, shows = GREY.astype(np.uint16) * 257, grey(GREY)
            kinds.append(Kind(f"tiff grey {bits}{big}", tiff(values, bits, order=order), shows, "tif"))
            white = tiff(2**bits - 1 - values, bits, photometric=0, order=order)
            kinds.append(Kind(f"tiff white is zero {bits}{big}", white, shows, "tif"))
        for bits in (8, 16):
            times = 257 if bits == 16 else 1
            chunky, planes = (tiff(RGB.astype(np.uint16) * times, bits, 1, 2, order, planar) for planar in (1, 2))
            kinds += [
                Kind(f"tiff rgb {bits}{big}", chunky, RGB, "tif"),
                Kind(f"tiff planes {bits}{big}", planes, RGB, "tif"),
            ]
            four = np.dstack([RGB, ALPHA]).astype(np.uint16) * times
            clear = tiff(four, bits, 1, 2, order, extra=(2,))
            kinds.append(Kind(f"tiff rgba {bits}{big}", clear, over_white(RGB, ALPHA), "tif", tolerance=1))
            inks = np.dstack([255 - RGB, np.zeros_like(GREY)]).astype(np.uint16) * times
            kinds.append(Kind(f"tiff cmyk {bits}{big}", tiff(inks, bits, 1, 5, order), RGB, "tif"))
        for name, bits, format, values, values_of in (
            ("signed", 8, 2, GREY.astype(int) - 128, (-128, 127)),
            ("signed", 16, 2, GREY.astype(int) * 100 - 9000, (-9000, 16500)),
            ("signed", 32, 2, GREY.astype(int) * 1000 - 9000, (-9000, 246_000)),
            ("unsigned", 32, 1, GREY.astype(np.uint32) * 16843009, (0, 2**32 - 1)),
            ("float", 16, 3, GREY / 255, (0, 1)),
            ("float", 32, 3, GREY.astype(float), (0, 255)),
            ("float", 64, 3, GREY * 1e6 - 5, (-5, 255e6 - 5)),
        ):
            data = tiff(values, bits, format, order=order)
            kinds.append(Kind(f"tiff {name} {bits}{big}", data, grey(GREY), "tif", values_of, 0.5 if bits == 16 else 0))
        for name, options in {
            "strips": {"rows": 7}, "tiles": {"tile": 16}, "deflated": {"rows": 7, "compression": 8},
            "deflated tiles": {"tile": 16, "compression": 8},
            "differences": {"rows": 7, "compression": 8, "predictor": 2},
        }.items():  # fmt: skip
            for planar in (1, 2):
                data = tiff(RGB.astype(np.uint16) * 257, 16, 1, 2, order, planar, **options)
                kinds.append(Kind(f"tiff rgb 16 {name} {planar}{big}", data, RGB, "tif"))
        data = tiff(GREY.astype(float), 32, 3, order=order, rows=7, compression=8, predictor=3)
        kinds.append(Kind(f"tiff float differences{big}", data, grey(GREY), "tif", (0, 255)))
    kinds += odd_tiffs()
    values, _ = quantised(8)
    colours = tuple(int(value) * 257 for value in PALETTE.T.ravel())
    kinds.append(
        Kind("tiff palette", tiff(values, 8, photometric=3, more=((320, 3, colours),)), PALETTE[values], "tif")
    )
    eight = tuple(map(int, PALETTE.T.ravel()))
    kinds.append(
        Kind("tiff palette of 8 bits", tiff(values, 8, photometric=3, more=((320, 3, eight),)), PALETTE[values], "tif")
    )
    sixteen = Image.fromarray(GREY.astype(np.uint16) * 257)
    for compression in ("tiff_lzw", "packbits", "tiff_adobe_deflate"):
        data = encoded(sixteen, "TIFF", compression=compression)
        kinds.append(Kind(f"tiff grey 16 {compression}", data, grey(GREY), "tif"))
    to_lab = ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB")
    lab = ImageCms.applyTransform(Image.fromarray(RGB), to_lab)
    kinds.append(Kind("tiff lab", encoded(lab, "TIFF"), RGB, "tif", tolerance=4))
    return kinds


def odd_tiffs() -> list[Kind]:
    """Return TIFFs with alpha in all layouts, and BigTIFFs; Pillow opens some of these."""
    kinds = []
    inks = np.dstack([255 - RGB, np.zeros_like(GREY)])
    share = ALPHA[..., None] / 255
    for name, colours, photometric, shows in (
        ("grey", GREY[..., None], 1, grey(GREY)), ("white is zero", 255 - GREY[..., None], 0, grey(GREY)),
        ("rgb", RGB, 2, RGB), ("cmyk", inks, 5, RGB),
    ):  # fmt: skip
        premultiplied = (colours * share).round()
        for planar in (1, 2):
            where = f"{name}{' in planes' if planar == 2 else ''}"
            more = {"alpha": (colours, 2, over_white(shows, ALPHA)), "an unknown sample": (colours, 0, shows)}
            if photometric in (1, 2):
                more["premultiplied alpha"] = (premultiplied, 1, over_white(shows, ALPHA))
            for what, (first, kind, seen) in more.items():
                values = np.dstack([first, ALPHA]).astype(np.uint8)
                data = tiff(values, 8, 1, photometric, planar=planar, extra=(kind,))
                kinds.append(Kind(f"tiff {where} and {what}", data, seen, "tif", tolerance=1))
    for order in "<>":
        for compression in (1, 8):
            data = tiff(RGB, 8, 1, 2, order, rows=7, compression=compression, big=True)
            kinds.append(Kind(f"bigtiff {order}{compression}", data, RGB, "tif"))
            data = tiff(GREY.astype(np.uint16) * 257, 16, 1, 1, order, rows=7, compression=compression, big=True)
            kinds.append(Kind(f"bigtiff 16 {order}{compression}", data, grey(GREY), "tif"))
    return kinds


def unusual() -> list[Kind]:
    """Return files that Pillow decodes differently from a viewer."""
    shown = Image.fromarray(RGB).quantize(64)
    small = bytearray(encoded(shown, "GIF"))
    small[6:10] = struct.pack("<HH", 50, 40)
    canvas = np.full((40, 50, 3), 255, np.uint8)
    canvas[: RGB.shape[0], : RGB.shape[1]] = np.asarray(shown.convert("RGB"))
    rows = np.dstack([RGB[::-1, :, ::-1], np.zeros_like(GREY)]).tobytes()
    masks = struct.pack("<4I", 0xFF0000, 0xFF00, 0xFF, 0xFF000000) + b"BGRs" + bytes(48)
    head = struct.pack("<IiiHHIIiiII", 108, RGB.shape[1], RGB.shape[0], 1, 32, 3, len(rows), 0, 0, 0, 0) + masks
    bmp = b"BM" + struct.pack("<IHHI", 14 + len(head) + len(rows), 0, 0, 14 + len(head)) + head + rows
    return [
        Kind("gif whose picture is smaller than it", bytes(small), canvas, "gif"),
        Kind("bmp of no alpha at all", bmp, RGB, "bmp"),
    ]


def maps() -> list[Kind]:
    kinds = []
    head = f"{GREY.shape[1]} {GREY.shape[0]}\n".encode()
    for most in (100, 255, 1023, 4095, 65535):
        values = (GREY.astype(float) * most / 255).round().astype(int)
        kind = ">u2" if most > 255 else "u1"
        shows = grey((values * 255.0 / most).round())
        number = f"# a comment\n{most}\n".encode()
        kinds.append(Kind(f"pgm {most}", b"P5\n" + head + number + values.astype(kind).tobytes(), shows, "pgm"))
        text = "\n".join(" ".join(map(str, row)) for row in values).encode()
        kinds.append(Kind(f"plain pgm {most}", b"P2\n" + head + number + b"# more\n" + text, shows, "pgm"))
        colours = (RGB.astype(float) * most / 255).round().astype(int)
        seen = (colours * 255.0 / most).round().astype(np.uint8)
        kinds.append(Kind(f"ppm {most}", b"P6\n" + head + number + colours.astype(kind).tobytes(), seen, "ppm"))
        text = "\n".join(" ".join(map(str, row)) for row in colours.reshape(len(colours), -1)).encode()
        kinds.append(Kind(f"plain ppm {most}", b"P3\n" + head + number + text, seen, "ppm"))
    black = GREY < 128
    kinds.append(Kind("pbm", b"P4\n" + head + np.packbits(black, axis=1).tobytes(), grey(~black * 255), "pbm"))
    digits = "\n".join("".join(str(int(dot)) for dot in row) for row in black).encode()
    kinds.append(Kind("plain pbm", b"P1\n" + head + digits, grey(~black * 255), "pbm"))
    for scale, kind in (("-1.0", "<f4"), ("1.0", ">f4")):
        data = b"Pf\n" + head + f"{scale}\n".encode() + (GREY[::-1] / 255).astype(kind).tobytes()
        kinds.append(Kind(f"pfm {scale}", data, grey(GREY), "pnm", (0, 1)))
    return kinds


def plain() -> list[Kind]:
    """Files of eight bits, as Pillow writes them."""
    seen, dark = Image.fromarray(RGB), Image.fromarray(GREY)
    palette = seen.quantize(64)
    clear = Image.fromarray(np.dstack([RGB, ALPHA]))
    shown = np.asarray(palette.convert("RGB"))
    best = {"quality": 95, "subsampling": 0}
    return [
        Kind("jpeg", encoded(seen, "JPEG", **best), RGB, "jpg", tolerance=3),
        Kind("jpeg progressive", encoded(seen, "JPEG", progressive=True, **best), RGB, "jpg", tolerance=3),
        Kind("jpeg grey", encoded(dark, "JPEG", quality=95), grey(GREY), "jpg", tolerance=3),
        Kind("jpeg cmyk", encoded(seen.convert("CMYK"), "JPEG", quality=95), RGB, "jpg", tolerance=6),
        Kind("jpeg rgb", encoded(seen, "JPEG", keep_rgb=True, quality=95), RGB, "jpg", tolerance=3),
        Kind("mpo", encoded(seen, "MPO", save_all=True, append_images=[dark], **best), RGB, "jpg", tolerance=3),
        Kind("webp", encoded(seen, "WEBP", quality=98), RGB, "webp", tolerance=8),
        Kind("webp lossless", encoded(seen, "WEBP", lossless=True), RGB, "webp"),
        Kind("webp rgba", encoded(clear, "WEBP", lossless=True, exact=True), over_white(RGB, ALPHA), "webp", None, 1),
        Kind("webp animated", encoded(seen, "WEBP", save_all=True, append_images=[dark.convert("RGB")], lossless=True),
             RGB, "webp"),
        Kind("gif", encoded(palette, "GIF"), shown, "gif"),
        Kind("gif animated", encoded(palette, "GIF", save_all=True, append_images=[dark]), shown, "gif"),
        Kind("bmp", encoded(seen, "BMP"), RGB, "bmp"),
        Kind("bmp rgba", encoded(clear, "BMP"), RGB, "bmp", tolerance=60),  # Pillow takes no alpha of one without masks
        Kind("bmp grey", encoded(dark, "BMP"), grey(GREY), "bmp"),
        Kind("bmp palette", encoded(palette, "BMP"), shown, "bmp"),
        Kind("bmp 1", encoded(dark.convert("1"), "BMP"), np.asarray(dark.convert("1").convert("RGB")), "bmp"),
        Kind("tiff jpeg", encoded(seen, "TIFF", compression="jpeg", quality=95), RGB, "tif", tolerance=4),
    ]  # fmt: skip


def every_kind() -> list[Kind]:
    """Return a file of each supported kind."""
    return [*plain(), *unusual(), *pngs(), *tiffs(), *maps()]


def with_exif(jpeg: bytes, *blocks: bytes) -> bytes:
    """Insert EXIF segments after the start of a JPEG."""
    segments = b"".join(b"\xff\xe1" + struct.pack(">H", len(block) + 2) + block for block in blocks)
    return jpeg[:2] + segments + jpeg[2:]


def saved(image: Image.Image, **options: object) -> bytes:
    """Save as the options say."""
    file = io.BytesIO()
    image.save(file, **options)
    return file.getvalue()

"""Words with numbers, as a sentence has them."""


def counted(number: int, what: str) -> str:
    """Format a number of things: 1 image, 2,000 images."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"

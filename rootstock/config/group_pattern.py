"""The type of parameters that find an image's group in its path: a regular expression with a group named `group`."""

from typing import Annotated

from pydantic import AfterValidator

GROUP = "group"  # the name of that group
EXPECTED = r"expected a regular expression with one group named group, e.g. (?P<group>patient_\d+)"


def _check(expression: str | None) -> str | None:
    r"""Check an expression with the library that will search it (RE2, in pyarrow); an empty one is none.

    Raises:
        ValueError: it is invalid, or has no group named `group`.
    """
    if not expression:  # the form sends an empty string for an empty field
        return None
    import pyarrow as pa  # only if groups are asked for: every command reads the parameters
    import pyarrow.compute as pc

    try:
        found = pc.extract_regex(pa.array([""], pa.string()), pattern=expression)
    except pa.ArrowInvalid as error:
        reason = str(error).removeprefix("Invalid regular expression: ")
        if "unnamed groups" in reason:
            reason = "it has a group without a name; write (?:...) instead of (...)"
        raise ValueError(f"is {expression!r} ({reason}); {EXPECTED}") from None
    if [field.name for field in found.type].count(GROUP) != 1:
        raise ValueError(f"is {expression!r}; {EXPECTED}")
    return expression


GroupPattern = Annotated[str | None, AfterValidator(_check)]

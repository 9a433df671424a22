"""Finds secrets in addresses and messages, and redacts them before they are shown or recorded.

Parameters end up in params.yaml, git, experiments and Prefect's database, messages in logs and artifacts. So no
parameter may contain a secret (addresses.py), and every error message goes through `redacted` (errors.py).
"""

import os
import re
from urllib.parse import quote, unquote, urlsplit

HIDDEN = "***"
SHORTEST_CHARACTERS = 4, 6  # of a password in a URL, of another secret: shorter ones occur in common words
# In a syntax that browsers understand, too: the patterns are in the schema of the form.
_COLON, _AT = "(?::|%3[aA])", "(?:@|%40)"
_NO_PORT = r"(?!\d*(?:[/?#'\"\s)\]]|$))"  # host:8080/me@home.jpg has no password
_NAMED = (
    "[sS]ignature|SIGNATURE|[cC]redential|CREDENTIAL|[tT]oken(?!iz)|TOKEN|[sS]ecret|SECRET|[pP]ass[wW](?:or)?d|PASSW(?:OR)?D|"
    "[pP]assphrase|[pP]wd|[aA][pP][iI][-_]?[kK][eE][yY]|[aA]ccess[-_]?[kK]ey|ACCESS[-_]?KEY|[aA]ccount[-_]?[kK]ey|"
    "[pP]rivate[-_]?[kK]ey|[sS]ubscription[-_]?[kK]ey|[cC]onnection[-_]?[sS]tring|[bB]earer|[jJ][wW][tT]"
)
_SHORT = "sig|Sig|SIG|sas|key|Key|KEY|pass|auth|Auth|authorization|Authorization"
_NO_CHAIN = r"(?!(?::|%3[aA])[a-z][\w+.-]*(?::|%3[aA]))"  # zip://a.csv::sftp://me@host has none either
_QUERY = rf"[?&;#](?:[\w.%-]*(?:{_NAMED})[\w.%-]*|{_SHORT})(?:=|%3[dD])"
_PASSWORD = rf"//[^/@:?#]*{_COLON}{_NO_PORT}{_NO_CHAIN}[\s\S]*?{_AT}"
# For http and object stores a user without password is a token; for SSH it is a user name, for Azure a container.
_ALONE = rf"(?:https?|s3a?|gs|gcs)://[^\s/@:?#'\"]+{_AT}"
_NO_PROTOCOL = rf"(?:\w+:/)?[^/]*{_COLON}[^/]*{_AT}"
NO_SECRET = rf"^(?![\s\S]*(?:{_PASSWORD}|{_QUERY}|{_ALONE}))(?!{_NO_PROTOCOL})(?![\s\S]*::{_NO_PROTOCOL})"

_query = re.compile(rf"({_QUERY})([^\s&;#'\"]+)")
_alone = re.compile(rf"({_ALONE.partition('[')[0]})[^\s/@:?#'\"]+{_AT}")
_password = re.compile(  # in a text, an address ends at whitespace or a quote; a password may contain @
    rf"(//[^\s/@:?#'\"%]*){_COLON}{_NO_PORT}{_NO_CHAIN}(?:[^\s/'\"?#]*{_AT}|[^\s'\"]*?{_AT}(?:[^\s/'\"?#]*{_AT})?)"
)
_value = re.compile(rf"(\b[\w.-]*(?:{_NAMED})[\w.-]*(?:=|['\"]:\s?['\"]))([^\s&;,#'\"<>]+)")
_header = re.compile(r"\b((?:Basic|Bearer)\s+)([\w+/=.~-]{6,})")
_secret_name = re.compile(rf"{_NAMED}|KEY$|AUTH|CREDENTIAL|SAS", re.IGNORECASE)


def kind_of_secret(address: str) -> str | None:
    """Return the kind of secret that an address contains, in any encoding; None if it contains none."""
    for text in _spellings(address):
        without_protocol = any(re.match(rf"[^/]*{_COLON}[^/]*{_AT}", link) for link in text.split("::"))
        if without_protocol or re.search(_PASSWORD, text):
            return "password"
        if re.search(_QUERY, text):
            return "key or signature"
        if re.search(_ALONE, text):
            return "token"
    return None


def _spellings(address: str) -> list[str]:
    """Return an address as written, and percent-decoded up to four times."""
    spellings = [address]
    while len(spellings) < 5 and (plain := unquote(spellings[-1])) != spellings[-1]:
        spellings.append(plain)
    # A typo such as s3:/key:secret@bucket exposes the secret just as well.
    return [re.sub(r"^(\w[\w+.-]+):/(?!/)", r"\1://", text) for text in spellings]


def redacted(text: str) -> str:
    """Redact passwords and signatures of URLs, and secrets of the environment, in a text."""
    for secret in _secrets_of_environment():
        text = text.replace(secret, HIDDEN)
    text = _password.sub(r"\1@", text)
    text = _alone.sub(rf"\1{HIDDEN}@", text)
    for pattern in (_query, _value, _header):
        text = pattern.sub(rf"\1{HIDDEN}", text)
    return text


def _secrets_of_environment() -> list[str]:
    """Return the secrets in environment variables: values of variables with a secret's name, passwords in URLs."""
    found = set()
    url_least, least = SHORTEST_CHARACTERS
    for name, value in os.environ.items():
        if "://" in value:
            found |= {secret for secret in _secrets_of_url(value) if len(secret) >= url_least}
        # JSON driver options, connection strings.
        found |= {match[2] for pattern in (_value, _header) for match in pattern.finditer(value)}
        if _secret_name.search(name) and not value.startswith("/") and "://" not in value:
            found |= {part for part in (value, value.partition(":")[2]) if len(part) >= least}  # user:password
    spelt = found | {quote(value, safe="") for value in found}
    return sorted(filter(None, spelt), key=len, reverse=True)


def _secrets_of_url(url: str) -> set[str]:
    found = {match[2] for match in _query.finditer(url)}
    try:
        password = urlsplit(url).password
    except ValueError:  # not a URL after all
        password = None
    return found | {password, unquote(password)} if password else found

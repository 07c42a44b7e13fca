"""Where somebody goes on after signing in: a page of this console, never another site's."""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import unquote

HOME: Final = "/console"
SIGN_IN: Final = "/console/sign-in"
_NEXT_MAX: Final = 2000
# What an URL is made of and a browser takes as it stands: no backslash (which it reads as a slash), no space or control
# character (which it drops), no fragment.
_PATH: Final = re.compile(r"/console(/[A-Za-z0-9._~%!$&'()*+,;=:@-]+)*/?(\?[A-Za-z0-9._~%!$&'()*+,;=:@/?-]*)?")
_NOT_PAGES: Final = ("/console/sign-", "/console/oidc", "/console/choose")


def safe_next(text: str) -> str:
    """`text` where it is the path of a page below /console, else the console's first page."""
    if len(text) > _NEXT_MAX or _PATH.fullmatch(text) is None:
        return HOME
    path = text.partition("?")[0]
    if any(unquote(segment) in (".", "..") for segment in path.split("/")) or path.startswith(_NOT_PAGES):
        return HOME
    return text

"""Pages of the console: templates rendered on the server, behind a strict content security policy."""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Callable, Collection, Mapping
from http import HTTPStatus
from importlib.resources import files
from typing import Any, Final, NamedTuple, Protocol
from urllib.parse import quote

import msgspec
from aiohttp import web
from jinja2 import Environment, PackageLoader, StrictUndefined
from multidict import MultiDictProxy

from api.routes import Route
from console import texts
from ledger.tokens import Token

ORG_PLACES: Final = (
    ("", "Overview"),
    ("/usage", "Usage"),
    ("/budgets", "Budgets"),
    ("/grants", "Grants"),
    ("/journal", "Journal"),
    ("/buy", "Buy credits"),
    ("/topup", "Auto top-up"),
    ("/notices", "Notices"),
    ("/grant", "Grant credits"),
    ("/settings", "Settings"),
)
ADMIN_PLACES: Final = (
    ("/console/orgs", "Orgs"),
    ("/console/rates", "Rates"),
    ("/console/sources", "Sources"),
    ("/console/stages", "Stages"),
    ("/console/shadow", "Shadow report"),
    ("/console/tokens", "Tokens"),
    ("/console/audit", "Audit"),
)
_OF_ORG: Final = "/console/orgs/{org}"
_ADMIN_ONLY: Final = frozenset({"/grant", "/settings"})
_NOT_FOR_VIEWERS: Final = frozenset({"/buy", "/topup", *_ADMIN_ONLY})
_TYPES: Final = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
_FLASH_MAX: Final = 500
_YEAR: Final = 31_536_000


class SessionForms(Protocol):
    """What pages need of sessions."""

    def is_secure(self, request: web.Request) -> bool:
        """Whether the browser speaks https, be it with a proxy before us."""

    def csrf_token(self, request: web.Request) -> str:
        """A token that a form of the signed-in person carries."""

    async def check_csrf(self, request: web.Request) -> MultiDictProxy[Any]:
        """The form's fields. Raises: web.HTTPForbidden for a form that no page of this session gave."""


class Place(NamedTuple):
    """A link of the navigation."""

    url: str
    title: str
    is_current: bool


class Pages:
    """Renders the templates of the console and serves its style sheet and script."""

    def __init__(
        self, sessions: SessionForms, token_of: Callable[[web.Request], Token], *, without: Collection[str] = ()
    ) -> None:
        """`token_of`: the signed-in person of a guarded request. `without`: ends of ORG_PLACES that are not offered."""
        self.sessions = sessions
        self.token_of = token_of
        self._without = frozenset(without)
        there = (files("console") / "static").iterdir()
        self._static = {file.name: file.read_bytes() for file in there if file.name.endswith(tuple(_TYPES))}
        self._places: dict[int, frozenset[str]] = {}
        self._templates = Environment(
            loader=PackageLoader("console"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
            lstrip_blocks=True, auto_reload=False,
        )  # fmt: skip
        self._templates.filters |= texts.FILTERS
        self._templates.globals["static"] = self.static_url

    def calls(self) -> list[Route]:
        """The files that pages refer to; everybody may have them."""
        return [Route("GET", "/console/static/{version}/{name}", self._file, None, "session")]

    def render(
        self,
        request: web.Request,
        template: str,
        *,
        status: int = 200,
        form_action: Collection[str] = (),
        **context: Any,
    ) -> web.Response:
        """A template as a page. `form_action`: other origins that its forms may lead to."""
        caller = self.caller(request)
        flash = self._read_flash(request)
        org = request.match_info.get("org") if caller is not None else None
        known = {
            "person": caller,  # `caller` is a word of the templates
            "org": org,
            "path": request.path,
            "org_places": self._org_places(request, caller, org),
            "admin_places": self._admin_places(request, caller),
            "flash": flash,
            "csrf": lambda: self.sessions.csrf_token(request),
            "zone": self.zone(request),
        }
        text = self._templates.get_template(template).render({**known, **context})
        about = headers(form_action, is_secure=self.sessions.is_secure(request))
        response = web.Response(text=text, status=status, content_type="text/html", headers=about)
        if flash is not None:
            response.del_cookie(
                self._cookie(request, "flash"), path="/", secure=self.sessions.is_secure(request), httponly=True
            )
        return response

    def redirect(self, request: web.Request, url: str, said: str = "", *, kind: str = "good") -> web.Response:
        """See another page after a form was taken; `said` is shown on it once. `kind`: good, or bad."""
        about = headers(is_secure=self.sessions.is_secure(request))
        response = web.Response(status=303, headers={**about, "Location": url})
        if said:
            data = base64.urlsafe_b64encode(msgspec.json.encode((kind, said[:_FLASH_MAX])))
            self.set_cookie(request, response, "flash", data.decode().rstrip("="), seconds=60)
        return response

    def set_cookie(
        self, request: web.Request, response: web.StreamResponse, name: str, value: str, *, seconds: int
    ) -> None:
        """A cookie beside the session's, which scripts cannot read either."""
        response.set_cookie(
            self._cookie(request, name), value, max_age=seconds, path="/", httponly=True, samesite="Lax",
            secure=self.sessions.is_secure(request),
        )  # fmt: skip

    def error_page(self, request: web.Request, status: int, text: str) -> web.Response:
        """An error as a page, with a way on."""
        try:
            title = HTTPStatus(status).phrase
        except ValueError:
            title = "Error"
        return self.render(request, "error.html", status=status, title=title, text=text, code=status)

    def caller(self, request: web.Request) -> Token | None:
        """The signed-in person, where the request is a guarded one."""
        try:
            return self.token_of(request)
        except KeyError:
            return None

    def zone(self, request: web.Request) -> str:
        """The time zone a person has chosen to see times in."""
        return texts.zone_or_utc(request.cookies.get(self._cookie(request, "zone"), ""))

    def static_url(self, name: str) -> str:
        """Of a file; it changes with what is in it, so that it may be kept for ever."""
        return f"/console/static/{_version(self._static[name])}/{name}"

    async def _file(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        content = self._static.get(name)
        if content is None:
            raise web.HTTPNotFound
        is_this = request.match_info["version"] == _version(content)
        about = {
            "Cache-Control": f"public, max-age={_YEAR}, immutable" if is_this else "no-cache",
            "X-Content-Type-Options": "nosniff",
        }
        kind = _TYPES[name[name.rindex(".") :]]
        return web.Response(body=content, content_type=kind, charset="utf-8", headers=about)

    def _there(self, request: web.Request) -> frozenset[str]:
        """Paths of what this application serves: only what is there is offered."""
        app = request.app
        if id(app) not in self._places:
            self._places[id(app)] = frozenset(resource.canonical for resource in app.router.resources())
        return self._places[id(app)]

    def _org_places(self, request: web.Request, caller: Token | None, org: str | None) -> list[Place]:
        if caller is None or org is None:
            return []
        hidden = _NOT_FOR_VIEWERS if caller.role == "viewer" else frozenset() if caller.role == "admin" else _ADMIN_ONLY
        there, base, own = self._there(request), org_url(org), _pattern(request)
        return [
            Place(base + end, title, own == _OF_ORG + end or (end != "" and own.startswith(f"{_OF_ORG}{end}/")))
            for end, title in ORG_PLACES
            if _OF_ORG + end in there and end not in hidden | self._without
        ]

    def _admin_places(self, request: web.Request, caller: Token | None) -> list[Place]:
        if caller is None or caller.role != "admin":
            return []
        there = self._there(request)
        return [Place(url, title, _is_at(request, url)) for url, title in ADMIN_PLACES if url in there]

    def _cookie(self, request: web.Request, name: str) -> str:
        return f"__Host-credits-{name}" if self.sessions.is_secure(request) else f"credits-{name}"

    def _read_flash(self, request: web.Request) -> tuple[str, str] | None:
        data = request.cookies.get(self._cookie(request, "flash"), "")
        try:
            kind, said = msgspec.json.decode(
                base64.urlsafe_b64decode(data + "=" * (-len(data) % 4)), type=tuple[str, str]
            )
        except (binascii.Error, msgspec.MsgspecError, ValueError):
            return None
        return ("bad" if kind == "bad" else "good", said) if said else None


def headers(form_action: Collection[str] = (), *, is_secure: bool = False) -> Mapping[str, str]:
    """Of every page: nothing but our own files, no framing, nothing kept, no address given away; where the browser
    speaks https, nothing else from then on."""
    targets = " ".join(["'self'", *form_action])
    policy = (
        "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self' data:; "
        f"form-action {targets}; base-uri 'none'; frame-ancestors 'none'"
    )
    return {
        "Content-Security-Policy": policy,
        "Cache-Control": "no-store",
        # With none at all, browsers would not say either that a form comes from here.
        "Referrer-Policy": "same-origin",
        "X-Content-Type-Options": "nosniff",
        "Cross-Origin-Opener-Policy": "same-origin",
        **({"Strict-Transport-Security": f"max-age={_YEAR}"} if is_secure else {}),
    }


def org_url(org: str, *more: str) -> str:
    """The path of an org's page, whatever its name is made of."""
    return "/".join(["/console/orgs", quote(org, safe=""), *more])


def _pattern(request: web.Request) -> str:
    """The path that the request was routed by, with `{org}` in it."""
    resource = request.match_info.route.resource
    return "" if resource is None else resource.canonical


def _is_at(request: web.Request, url: str) -> bool:
    """Whether the request is for a page or for one below it."""
    return request.path == url or (url != "/console/orgs" and request.path.startswith(f"{url}/"))


def _version(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]

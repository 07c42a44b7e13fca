"""The time zone that a person sees times in."""

from __future__ import annotations

from typing import Final

from aiohttp import web

from console import texts
from console.pages import Pages
from ledger.errors import InvalidRequest
from ledger.steps import check_zone

_YEAR: Final = 31_536_000


class ZonePage:
    """A form with one field; the browser keeps the choice."""

    def __init__(self, pages: Pages) -> None:
        self._pages = pages

    async def page(self, request: web.Request) -> web.Response:
        """Shows the choice."""
        return self._form(request, self._pages.zone(request), "")

    async def save(self, request: web.Request) -> web.Response:
        """Keeps the choice. Raises: web.HTTPForbidden."""
        form = await self._pages.sessions.check_csrf(request)
        name = str(form.get("timezone", "")).strip()
        try:
            check_zone(name)
            if texts.zone_or_utc(name) != name:
                raise InvalidRequest(f"timezone {name[:64]!r}: expected a name like UTC or Europe/Berlin")
        except InvalidRequest as error:
            return self._form(request, name, str(error))
        response = self._pages.redirect(request, "/console/zone", f"Times are shown in {name} from now on.")
        self._pages.set_cookie(request, response, "zone", name, seconds=_YEAR)
        return response

    def _form(self, request: web.Request, name: str, error: str) -> web.Response:
        return self._pages.render(
            request, "zone.html", status=422 if error else 200, name=name, error=error, zones=texts.zones()
        )

"""Stripe Checkout, through its official library: the buyer's card is never seen here."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, Final, TypeVar

import msgspec
import requests
import stripe

from config.payments import Payments
from console import stripe_news as read
from console.provider import (
    BadSignature,
    Charge,
    Checkout,
    News,
    ProviderUnavailable,
    Returned,
    SavedCard,
    UnknownToProvider,
)
from ledger.purchase_step import TOP_UP, Order

T = TypeVar("T")
_THREADS: Final = 4
_PAGE: Final = 100
_SKEW_SECONDS: Final = 3600


class StripeProvider:
    """Its calls block, so they run on threads of their own. Keys are read at each use, as they may be rotated."""

    def __init__(self, settings: Payments) -> None:
        self._settings = settings
        self._threads = ThreadPoolExecutor(_THREADS, "stripe")
        self._session = requests.Session()
        self._http = stripe.RequestsClient(timeout=settings.timeout_seconds, session=self._session)

    async def checkout(self, order: Order, back_url: str) -> Checkout:
        """The same session when asked again within a day, by Stripe's idempotency key."""
        about = {"org": order.org, "order": order.id}
        params: Any = {
            "mode": "payment",
            "client_reference_id": order.id,
            "metadata": about,
            "payment_intent_data": {"metadata": about},
            "line_items": [
                {
                    "quantity": 1,
                    "price_data": {
                        "currency": order.currency,
                        "unit_amount": order.amount,
                        "product_data": {"name": f"{order.credits} credits", "description": f"for org {order.org}"},
                    },
                }
            ],
            "success_url": back_url,
            "cancel_url": f"{back_url}{'&' if '?' in back_url else '?'}cancelled=1",
        }
        if order.save_card:
            params["payment_intent_data"]["setup_future_usage"] = "off_session"
            params |= {"customer": order.customer} if order.customer else {"customer_creation": "always"}
        session = await self._call(
            lambda client: client.v1.checkout.sessions.create(params, {"idempotency_key": order.id})
        )
        if not session.url:
            raise ProviderUnavailable("Stripe gave a checkout session without a page")
        return Checkout(session.id, session.url, session.expires_at * 1_000_000)

    def read_webhook(self, body: bytes, signature: str) -> Sequence[News]:
        """Checked as Stripe's library does. Raises: BadSignature; CreditsError where the secret cannot be read."""
        secret = self._settings.webhook_secret.read()
        try:
            stripe.WebhookSignature.verify_header(body, signature, secret, int(self._settings.tolerance_seconds))
        except (stripe.SignatureVerificationError, UnicodeDecodeError, ValueError) as error:
            raise BadSignature(f"The signature of this webhook does not hold: {error}") from None
        return read.event_news(body)

    async def news_since(self, us: int) -> Sequence[News]:
        """Sessions, payments, refunds and disputes created since an instant, oldest last."""
        since: Any = {"created": {"gte": us // 1_000_000}, "limit": _PAGE}

        def ask(client: stripe.StripeClient) -> list[News]:
            api = client.v1
            found: list[News] = []
            for session in api.checkout.sessions.list(since).auto_paging_iter():
                found += read.session_news(_as(session, read.Session))
            for intent in api.payment_intents.list(since).auto_paging_iter():
                found += read.intent_news(_as(intent, read.Intent))
            for refund in api.refunds.list(since).auto_paging_iter():
                found += read.refund_news(_as(refund, read.Refund))
            for dispute in api.disputes.list(since).auto_paging_iter():
                found += read.dispute_news(_as(dispute, read.Dispute))
            return found

        return await self._call(ask)

    async def returns_of(self, payment: str) -> Sequence[Returned]:
        """The refunds of a payment."""
        params: Any = {"payment_intent": payment, "limit": _PAGE}

        def ask(client: stripe.StripeClient) -> list[Returned]:
            refunds = client.v1.refunds.list(params).auto_paging_iter()
            news = [one for refund in refunds for one in read.refund_news(_as(refund, read.Refund))]
            return [one for one in news if isinstance(one, Returned)]

        return await self._call(ask)

    async def place_of(self, payment: str) -> tuple[str, str] | None:
        """By the metadata that came with the order."""
        found = await self._call(lambda client: client.v1.payment_intents.retrieve(payment))
        return read.place_in(found.to_dict().get("metadata"))

    async def charge(self, order: Order) -> Charge:
        """The same charge when asked again within a day, by Stripe's idempotency key."""
        params: Any = {
            "amount": order.amount,
            "currency": order.currency,
            "customer": order.customer,
            "payment_method": order.method,
            "payment_method_types": ["card"],
            "off_session": True,
            "confirm": True,
            "description": f"{order.credits} credits for org {order.org}",
            "metadata": {"org": order.org, "order": order.id, "kind": TOP_UP},
        }

        def ask(client: stripe.StripeClient) -> Charge:
            try:
                made = client.v1.payment_intents.create(params, {"idempotency_key": order.id})
            except stripe.CardError as error:
                body: Any = error.json_body or {}
                about = body.get("error", {})
                payment = (about.get("payment_intent") or {}).get("id", "")
                return Charge(payment, "failed", read.reason_of(about.get("code"), about.get("decline_code")))
            except stripe.InvalidRequestError as error:
                if error.http_status not in (400, 404):
                    raise
                is_gone = error.code == "resource_missing" or error.param in ("payment_method", "customer")
                return Charge("", "failed", "card_removed" if is_gone else error.code or "invalid_request")
            return read.charge_of(_as(made, read.Intent))

        return await self._call(ask)

    async def charge_of(self, order: Order) -> Charge | None:
        """By its payment, or else among all of its customer's since the order was made."""
        since: Any = {
            "customer": order.customer,
            "created": {"gte": order.created_us // 1_000_000 - _SKEW_SECONDS},
            "limit": _PAGE,
        }

        def ask(client: stripe.StripeClient) -> Charge | None:
            api = client.v1.payment_intents
            try:
                if order.session:
                    return read.charge_of(_as(api.retrieve(order.session), read.Intent))
                for one in api.list(since).auto_paging_iter():
                    intent = _as(one, read.Intent)
                    if read.place_in(intent.metadata) == (order.org, order.id):
                        return read.charge_of(intent)
            except stripe.InvalidRequestError as error:
                if error.code != "resource_missing":  # the customer is gone, or the key is now another account's
                    raise
            return Charge(order.session, "cancelled", "payment_unknown") if order.session else None

        return await self._call(ask)

    async def cancel(self, payment: str) -> Charge:
        """Stripe refuses to cancel what succeeded, or is cancelled already."""

        def ask(client: stripe.StripeClient) -> Charge:
            api = client.v1.payment_intents
            try:
                return read.charge_of(_as(api.cancel(payment), read.Intent))
            except stripe.InvalidRequestError:
                return read.charge_of(_as(api.retrieve(payment), read.Intent))

        return await self._call(ask)

    async def card_of(self, payment: str) -> SavedCard | None:
        """None where its owner did not agree to it."""
        params: Any = {"expand": ["payment_method"]}
        found = await self._call(lambda client: client.v1.payment_intents.retrieve(payment, params))
        return read.card_of(_as(found, read.PaidBy))

    async def forget(self, method: str) -> None:
        """Detaches it from its customer."""

        def ask(client: stripe.StripeClient) -> None:
            with suppress(stripe.InvalidRequestError):
                client.v1.payment_methods.detach(method)

        await self._call(ask)

    async def close(self) -> None:
        """Ends its connections; a call that goes on is left to end by itself."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._session.close()

    async def _call(self, ask: Callable[[stripe.StripeClient], T]) -> T:
        client = stripe.StripeClient(
            self._settings.secret_key.read(),
            base_addresses={"api": self._settings.api_base.rstrip("/")},
            http_client=self._http,
            max_network_retries=1,
        )
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, ask, client)
        except stripe.InvalidRequestError as error:
            if error.code != "resource_missing":
                raise ProviderUnavailable(f"Stripe: {error.user_message or error}") from error
            raise UnknownToProvider(
                f"Stripe: {error.user_message or error}. It was deleted, or the secret key "
                "here is of another account or mode (test, live)"
            ) from error
        except stripe.APIConnectionError as error:
            where = self._settings.api_base
            raise ProviderUnavailable(f"Stripe cannot be reached at {where}: {_first_cause(error)}") from error
        except stripe.StripeError as error:
            raise ProviderUnavailable(f"Stripe: {error.user_message or error}") from error
        except Exception as error:  # the library stumbles over answers that are not Stripe's, as of a proxy
            raise ProviderUnavailable(f"Stripe's answer cannot be read: {error}") from error


def _as(found: stripe.StripeObject, kind: type[T]) -> T:
    return msgspec.json.decode(json.dumps(found.to_dict(), default=str), type=kind)


def _first_cause(error: BaseException) -> str:
    # The library's own words are half a page about what a name that is not resolved may mean.
    while (earlier := error.__cause__ or error.__context__) is not None:
        error = earlier
    return str(error) or type(error).__name__

"""Which requests are answered: those of this machine's own pages, and of no other site's.

A name of another site may be made to point at 127.0.0.1, so the Host must be one of this machine's
names; a page of another site may post a form here, so what posts must come from a page of ours.
"""

from __future__ import annotations

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

HOSTS = frozenset({"127.0.0.1", "localhost", "[::1]"})
POLICY = (
    "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",
}
_READING = ("GET", "HEAD")


class Guard:
    """Refuses other hosts and other sites, and tells browsers to ask the network for nothing."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or refuse it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        why = refusal(scope["method"], Headers(scope=scope))

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        refused = PlainTextResponse(why, status_code=403)
        await (refused if why else self.app)(scope, receive, send_guarded)


def refusal(method: str, headers: Headers) -> str:
    """Why a request is refused; empty if it is not."""
    host = headers.get("host", "")
    if _without_port(host) not in HOSTS:
        return (
            f"The explorer answers to {', '.join(sorted(HOSTS))} only, not to {host[:100]!r}: "
            "another site may have pointed its name at this machine."
        )
    if method in _READING:
        return ""
    if headers.get("origin") != f"http://{host}":
        return "Annotations are saved from the explorer's own pages only: open it and save there."
    return ""


def _without_port(host: str) -> str:
    name, colon, port = host.rpartition(":")
    return name if colon and port.isdecimal() else host

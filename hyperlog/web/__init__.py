"""HTTP and WebSocket: brings records in, answers questions about them, shows them as they come.

    app = create_app(server)
    address = await nursery.start(partial(serve_http, app, ("127.0.0.1", 8787)))

Starlette's routing and hypercorn's protocols on trio, in the nursery of whoever starts it. Needs
the extra `web`.
"""

from hyperlog.web.app import create_app
from hyperlog.web.service import Service
from hyperlog.web.serving import serve_http

__all__ = ["Service", "create_app", "serve_http"]

"""What the ASGI and WSGI apps have in common: routes, checks of requests, the live page and its actions."""

"""The HTTP server: uvicorn with the limits that a public service needs.

`connection` is the asyncio protocol, `connections` keeps all of them within their limits and timeouts, `server` starts
and stops. Requests reach the application as ASGI.
"""

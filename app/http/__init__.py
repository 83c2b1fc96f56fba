"""The HTTP server: uvicorn with limits that a public service can live with.

`connection` is the protocol class, `connections` all of them with their limits and their clock, `server` starts and
stops. Requests reach the application as ASGI.
"""

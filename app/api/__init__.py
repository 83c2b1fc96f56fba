"""HTTP: the app and its lifespan, one module per protocol, the web page."""

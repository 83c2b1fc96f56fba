"""HTTP: the app and its lifespan, one file a protocol, the web page."""

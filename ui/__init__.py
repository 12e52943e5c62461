"""The app: a page over the library's public functions. `python -m ui` opens it."""

"""One request's life: API, admission, routing brain, relay."""

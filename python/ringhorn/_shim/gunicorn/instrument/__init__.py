"""gunicorn.instrument."""

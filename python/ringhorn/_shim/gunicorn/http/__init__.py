"""gunicorn.http."""

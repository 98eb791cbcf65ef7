"""The WSGI application: ``ringhorn mysite.wsgi``."""

import os

from django.core.wsgi import get_wsgi_application

from mysite.first_start import prepare_database

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "mysite.settings")

application = get_wsgi_application()
prepare_database()

"""Ringhorn for Django projects: put ``"ringhorn.django"`` first into INSTALLED_APPS.

``manage.py runserver`` then develops on Ringhorn, ``manage.py ringhorn`` serves the project with production
settings, and ``manage.py check --deploy`` compares the settings of both. Nothing here is imported by the
server itself: Django is not needed without this application.
"""

"""The Django application."""

from __future__ import annotations

from django.apps import AppConfig
from django.core import checks


class RinghornConfig(AppConfig):
    name = "ringhorn.django"
    # The last part of the name would be `django`.
    label = "ringhorn"
    verbose_name = "Ringhorn"

    def ready(self) -> None:
        from ringhorn.django import _checks

        checks.register(_checks.check_order)
        checks.register(_checks.check_server, _checks.TAG, deploy=True)

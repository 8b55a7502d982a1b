"""The configuration of the Django app."""

from django.apps import AppConfig

__all__ = ["LedgerqConfig"]


class LedgerqConfig(AppConfig):  # type: ignore[misc]
    """The app `ledgerq.tools.django`: it has a command, and no models."""

    name = "ledgerq.tools.django"
    label = "ledgerq"
    verbose_name = "ledgerq"

"""Importing this registers all scenarios."""

from . import applications, crashes, deaths, lifecycle, overload, stalls, surroundings, visitors

__all__ = ["applications", "crashes", "deaths", "lifecycle", "overload", "stalls", "surroundings", "visitors"]

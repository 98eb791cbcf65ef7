"""Importing this registers all scenarios."""

from . import applications, deaths, lifecycle, surroundings, visitors

__all__ = ["applications", "deaths", "lifecycle", "surroundings", "visitors"]

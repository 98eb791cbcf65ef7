"""Options of all Python tests: those of tests/python and of tests/faults."""

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--server", help="command of another server to test, without its application")
    parser.addoption("--io", action="append", choices=("uring", "epoll"), help="only this I/O backend")

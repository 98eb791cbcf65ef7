"""The fixtures of the Python tests: servers on both I/O backends."""

import importlib.util
from pathlib import Path

PLACE = Path(__file__).parent.parent / "python" / "conftest.py"
spec = importlib.util.spec_from_file_location("ringhorn_fixtures", PLACE)
fixtures = importlib.util.module_from_spec(spec)
spec.loader.exec_module(fixtures)

pytest_generate_tests = fixtures.pytest_generate_tests
pytest_collection_modifyitems = fixtures.pytest_collection_modifyitems
io = fixtures.io
start = fixtures.start
serve = fixtures.serve

"""Makes the database ready at the first start, so that the demo needs no other command.

A project in production runs ``manage.py migrate`` when it is deployed instead.
"""

import fcntl

from django.conf import settings
from django.core.management import call_command
from django.db import connections
from django.db.migrations.executor import MigrationExecutor


def prepare_database() -> None:
    """Apply the migrations that are missing and, with DEMO=1, make the demo's admin user."""
    path = settings.DATABASES["default"]["NAME"]
    # All workers come here at the same moment. The first to get the lock does the work, and the
    # others find it done. The kernel drops the lock if its holder dies.
    with open(f"{path}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        executor = MigrationExecutor(connections["default"])
        if executor.migration_plan(executor.loader.graph.leaf_nodes()):
            call_command("migrate", interactive=False, verbosity=0)
        if settings.DEMO:
            _make_demo_user()
    # With --preload this ran in the master: a connection must not be carried over a fork.
    connections.close_all()


def _make_demo_user() -> None:
    from django.contrib.auth import get_user_model

    users = get_user_model().objects
    if not users.filter(username="admin").exists():
        users.create_superuser("admin", password="admin")
        print("example project: made the user admin with the password admin (DEMO=1)", flush=True)

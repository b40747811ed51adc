"""Django settings of the foreign server; everything that differs per run comes from the environment."""

import os
from pathlib import Path
from typing import Any

FOLDER = Path(os.environ["FOREIGN_FOLDER"])
SECRET_KEY = os.environ["FOREIGN_DJANGO_SECRET"]
DEBUG = False
USE_TZ = True
ALLOWED_HOSTS = ["127.0.0.1", "localhost"]
ROOT_URLCONF = "foreign.urls"
INSTALLED_APPS = ["django.contrib.contenttypes", "django.contrib.auth", "oauth2_provider"]
MIDDLEWARE: list[str] = []
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

PASSWORD_HASHERS = ["foreign.hashers.QuickHasher"]

DATABASES: dict[str, dict[str, Any]] = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": FOLDER / "foreign.sqlite3",
        # Closing the last connection to a WAL database locks it for a moment: keep them.
        "CONN_MAX_AGE": None,
        "OPTIONS": {
            "timeout": 20,
            # A deferred transaction that turns into a writer fails at once when another one wrote meanwhile.
            "transaction_mode": "IMMEDIATE",
            "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL",
        },
    }
}

OAUTH2_PROVIDER = {
    "OAUTH2_VALIDATOR_CLASS": "foreign.validator.BothGrants",
    "ACCESS_TOKEN_EXPIRE_SECONDS": int(os.environ["FOREIGN_LIFETIME"]),
    "ROTATE_REFRESH_TOKEN": True,
    "REFRESH_TOKEN_REUSE_PROTECTION": True,
    "REFRESH_TOKEN_GRACE_PERIOD_SECONDS": 0,
    # The password grant is what finAPI has; the toolkit plans to refuse it by default.
    "COMPLIANT_BCP_RFC9700_PASSWORD_GRANT": False,
    "SCOPES": {"all": "everything"},
}

LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "handlers": {"console": {"class": "logging.StreamHandler"}},
    "root": {"handlers": ["console"], "level": "WARNING"},
}

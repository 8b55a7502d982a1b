"""The settings: the app `ledgerq.tools.django`, and where its jobs are."""

import os
from pathlib import Path

BASE_DIR = Path(os.environ.get("SHOP_DIR", Path(__file__).parents[1]))
SECRET_KEY = os.environ.get("SECRET_KEY", "only for the example")
ALLOWED_HOSTS = ["*"]
USE_TZ = True
ROOT_URLCONF = "shop.urls"
WSGI_APPLICATION = "shop.wsgi.application"
INSTALLED_APPS = ["ledgerq.tools.django", "shop"]
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": BASE_DIR / "db.sqlite3"}}

TASKS = {
    "default": {
        "BACKEND": "ledgerq.tools.django.backend.LedgerqBackend",
        "QUEUES": ["default", "mail"],
        "OPTIONS": {"url": os.environ.get("LEDGERQ_URL", BASE_DIR / "jobs"), "max_attempts": 5},
    }
}

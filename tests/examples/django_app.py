"""Django: a site that keeps finAPI's tokens in its own database."""

import json
import os

from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.http import JsonResponse
from django.urls import path
from sqlalchemy import create_engine

from finapi_session import FinapiSession, SQLStore

if not settings.configured:  # your settings.py
    database = {"ENGINE": "django.db.backends.sqlite3", "NAME": os.environ["DATABASE_FILE"]}
    settings.configure(
        SECRET_KEY=os.environ["DJANGO_SECRET_KEY"],
        ALLOWED_HOSTS=["127.0.0.1"],
        DATABASES={"default": database},
        ROOT_URLCONF=__name__,
    )

passwords = json.loads(os.environ["FINAPI_PASSWORDS"])  # your vault
store = SQLStore(create_engine(f"sqlite:///{settings.DATABASES['default']['NAME']}"))
store.create_table()  # or in a migration
client = FinapiSession.from_env(store=store)


def accounts(request):
    user = request.headers["X-User"]  # request.user.username, with your login
    response = client.user(user, lambda: passwords[user]).get("/api/v2/accounts")
    return JsonResponse(response.json(), status=response.status_code)


urlpatterns = [path("accounts", accounts)]
application = get_wsgi_application()

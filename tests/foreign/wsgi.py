"""What gunicorn runs: Django behind the front."""

import os

from django.core.wsgi import get_wsgi_application

django_application = get_wsgi_application()

from .front import Front  # noqa: E402  (the toolkit can be imported only once Django is set up)

application = Front(django_application, os.environ["FOREIGN_CLIENT_ID"], os.environ["FOREIGN_CLIENT_SECRET"])

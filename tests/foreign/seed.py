"""Make the database: the toolkit's tables, one confidential client, one user."""

import os

import django
from django.core.management import call_command


def seed() -> None:
    """Fill a new database with what the environment names."""
    from django.contrib.auth import get_user_model
    from oauth2_provider.models import get_application_model

    call_command("migrate", verbosity=0, skip_checks=True)
    get_user_model().objects.create_user(os.environ["FOREIGN_USERNAME"], password=os.environ["FOREIGN_PASSWORD"])
    application = get_application_model()
    application.objects.create(
        client_id=os.environ["FOREIGN_CLIENT_ID"],
        client_secret=os.environ["FOREIGN_CLIENT_SECRET"],
        client_type=application.CLIENT_CONFIDENTIAL,
        authorization_grant_type=application.GRANT_PASSWORD,
    )


if __name__ == "__main__":
    django.setup()
    seed()

"""A password hasher that costs a test run little."""

from django.contrib.auth.hashers import PBKDF2PasswordHasher


class QuickHasher(PBKDF2PasswordHasher):
    """Django's default with few rounds: a million of them per token call would prove nothing more."""

    iterations = 1000

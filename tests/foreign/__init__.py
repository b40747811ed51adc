"""OAuth servers nobody here wrote (django-oauth-toolkit, Authlib), and what the session does with them."""

"""An OAuth server nobody here wrote (django-oauth-toolkit), and what the session does with it."""

"""The programs that the how-to pages of the docs show, whole. ``test_examples.py`` runs them."""

"""The programs that the README shows under "Frameworks", whole. ``test_examples.py`` runs them."""

"""The library in a world of models, where every order of events can be played, and played again."""

"""The same five jobs with each library: whole programs, which ``tests.bench.lines`` runs and counts."""

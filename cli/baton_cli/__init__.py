"""The baton command and the local supervisor; the only place that composes everything."""

"""What every worker process shares: the HTTP face, OpenAI answers, control service, metrics, drain."""

"""What every worker process shares: settings, the HTTP face, OpenAI answers, control service, metrics, life and death.

Belongs here: everything a prefill and a decode process do alike. What each does with a leg is its own package's.
Does not belong here: routing, who may ask, how KV moves (baton_kv), how tokens are made (baton_engine).
"""

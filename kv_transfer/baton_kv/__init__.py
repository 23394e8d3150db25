"""Moves named KV blocks between processes: copy plan, session, leases, transports."""

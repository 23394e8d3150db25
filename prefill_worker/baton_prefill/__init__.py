"""A prefill process: computes prompts, holds leases, lets decode pull."""

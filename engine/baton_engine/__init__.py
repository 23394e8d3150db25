"""Tokens in, tokens out: paged KV, scheduler, torch model, sampling, text.

Belongs here: everything that turns token ids into token ids, and text into token ids and back (`text`).
Does not belong here: HTTP, moving KV between processes, who may ask. Torch is imported only by the modules that hold
tensors (`attention`, `kv_cache`, `linear`, `model`, `rope`, `runner`, `sampler`, `weights`), so that scheduler, block
pool, text and a model's config import without it.
"""

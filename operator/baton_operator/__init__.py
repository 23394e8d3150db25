"""One resource's life: observe, decide, apply.

`observe` reads everything into one snapshot; `desired`, `rollout` and `status` decide what should be, `plan` what to do
about the difference (all pure); `apply` is the only writer. `reconcile` is the story. Level-triggered: any run from any
state converges. What belongs to one request (gateway) or one process (workers) does not belong here; no torch.
"""

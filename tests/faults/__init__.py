"""The fault runner: real processes under constant load, a fault at a seeded moment, a checker over what was seen.

`story` has the nouns, `checker` judges, `figures` measures, `rows` tells each fault as a story; `client`, `theatre` and
`probes` do the work. `python -m faults --help`, or `make faults`.
"""

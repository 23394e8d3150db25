"""The nouns and contracts that every Baton component shares.

Belongs here: frozen data, parsing and validation of what crosses a process boundary, pure functions on them.
Does not belong here: I/O, clocks, randomness, frameworks, anything outside the standard library.
"""

"""Generated from wire/proto by `make proto`; never edited by hand."""

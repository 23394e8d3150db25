"""The transports: one module each. All meet tests/contract/test_transport_contract.py."""

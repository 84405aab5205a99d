"""What carries a session: its event loop, its bytes, and the running of handlers."""

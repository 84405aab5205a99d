"""Dialects: how messages and values are written. Bytes and references, never tables."""

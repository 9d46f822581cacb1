"""Scripted experts, as policies."""

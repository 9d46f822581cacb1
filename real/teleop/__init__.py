"""Devices with which a person takes over."""

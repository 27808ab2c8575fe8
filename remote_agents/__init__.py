"""Watches the inference hosts: agents there, one collector process here."""

"""Sockets of our own: `client.Client.fetch` is the door that users go through; what is behind it may change."""

"""Probes: how to find out whether something answers, and when that counts as a change."""

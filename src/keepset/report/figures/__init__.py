"""Tidy table in, matplotlib Figure out; no statistics in here."""

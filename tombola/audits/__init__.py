"""Audits: tickets judged against controls."""

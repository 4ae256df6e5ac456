"""Reads records and shows them: boards, statistics and the page. Never loads torch."""

"""The report of a run: findings in sentences, figures, and one page that opens offline."""

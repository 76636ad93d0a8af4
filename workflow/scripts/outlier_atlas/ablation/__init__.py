"""What follows if an outlier is taken away: perplexity of held-out tokens, through layer groups."""

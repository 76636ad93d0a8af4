"""From texts to the token store."""

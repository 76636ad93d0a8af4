"""The dataset stage: from texts to the token store."""

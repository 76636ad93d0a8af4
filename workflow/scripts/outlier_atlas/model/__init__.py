"""Models: where they come from, what they are made of, and how a part of one is loaded."""

"""Architecture of a model by role: decoder, layers, sites, head, and weights."""

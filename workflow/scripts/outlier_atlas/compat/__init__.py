"""Names of other libraries that are not public, each with the reason why it is used."""

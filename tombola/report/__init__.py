"""Tables and figures of a draw: what a search for lottery tickets found, for terminals, documents and papers."""

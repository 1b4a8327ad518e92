"""Pictures of a world: what happened when, as spans, text, a picture or a Chrome trace."""

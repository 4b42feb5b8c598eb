"""Cut channels out of a graph that nobody needs, or that are constants which the layers behind can take up."""

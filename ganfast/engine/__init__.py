"""The training loop and what it leaves behind. It knows the type of a recipe, data and metrics, and nothing else of ganfast."""

"""Other services of the same embeddings, as a competent person would write or start them."""

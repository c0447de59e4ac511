"""What is taken home: the trained model, its forms, its card, how far its probabilities can be believed."""

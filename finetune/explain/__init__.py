"""What a model gets wrong, and where it looked: the hardest test rows with thumbnails, and Grad-CAM; and what a language model writes."""

"""What leaves the house: the licence gate, the legal texts of a bundle, and the model card."""

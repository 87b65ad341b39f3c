"""Self-Souping: inter-train copies of one stock without labels, fine-tune them back, average them."""

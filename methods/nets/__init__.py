"""Networks: weights and their architecture, vision transformers, encoders of timm."""

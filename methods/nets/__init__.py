"""Networks: weights and their architecture, vision transformers, timm encoders."""

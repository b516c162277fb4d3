"""Rules that change a mask during training, as functions of what they see between two steps."""

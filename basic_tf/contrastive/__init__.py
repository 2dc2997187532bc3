"""The contrastive objective and its exact gradient under limited memory."""

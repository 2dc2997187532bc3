"""Emoji pictures of several styles joined to concepts, their texts and their splits."""

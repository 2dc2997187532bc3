"""The icon sets of @iconify/json as pairs: which sets, which icons, under which names."""

"""The Open Clip Art Library of 2005, as Debian packages it, as pairs of drawings and texts."""

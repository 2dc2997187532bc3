"""Photographs in Debian's packages: Tux Paint's stamps and Fashion-MNIST."""
